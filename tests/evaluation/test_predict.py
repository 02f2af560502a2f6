"""Predictions for other images: same decode path, a row with the error for a bad file, other classes refused."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from tests.conftest import ROOT, draw_tree
from tests.experiment.test_experiment import table
from tl_research import InputError, Run, compose
from tl_research.commands.arguments import folder_beside, open_run
from tl_research.commands.card import card_command
from tl_research.commands.evaluate import evaluate_command
from tl_research.commands.predict import predict_command
from tl_research.evaluation import predict
from tl_research.evaluation.predict import evaluate_on, images_in, predict_images, predict_logits
from tl_research.system.process import importable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Run:
    options = ["backbone=tiny", "data=folder", f"data.root={colours}", "callbacks=none", "data.resize=crop"]
    return compose(options).run(tmp_path_factory.mktemp("predict") / "run")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "tl_research", *arguments]
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(cwd)}
    return subprocess.run(whole, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_predictions_equal_those_that_the_run_recorded(run: Run) -> None:
    with (run.directory / "predictions.csv").open() as file:
        recorded = {row["path"]: row for row in csv.DictReader(file)}
    header, rows = predict_images(run, [Path(path) for path in recorded])
    for row in rows:
        predicted = dict(zip(header, row, strict=True))
        known = recorded[predicted["path"]]
        assert predicted["prediction"] == known["prediction"]
        assert predicted["p_red"] == pytest.approx(float(known["p_red"]), abs=1e-4)
        assert predicted["error"] == ""


@pytest.mark.slow
def test_a_bad_file_gets_a_row_with_its_error(run: Run, colours: Path, tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("no image")
    paths = [bad, colours / "test" / "red" / "000.jpg", tmp_path / "missing.png"]
    result = command("predict", str(run.directory), *map(str, paths), cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [bool(row["error"]) for row in rows] == [True, False, True]
    assert rows[1]["prediction"] == "red"
    assert rows[0]["p_red"] == ""
    assert result.stderr == "2 image(s) have no answer; the column error says why\n"


@pytest.mark.slow
def test_folders_are_searched_and_a_csv_is_written(run: Run, colours: Path, tmp_path: Path) -> None:
    result = command("predict", str(run.directory), str(colours / "test"), "-o", "answers.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 13
    with pytest.raises(InputError, match="no images"):
        images_in([tmp_path])


def answer(run: Run, *options: Any, **more: Any) -> tuple[int, list[dict[str, str]]]:
    """Predict into a CSV file; return the exit status and the rows."""
    output = run.directory.parent / "answers.csv"
    try:
        predict_command(run.directory, *options, output=output, **more)
    except typer.Exit as end:
        return end.exit_code, table(output)
    return 0, table(output)


def test_each_option_adds_its_columns(run: Run, colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(run, [colours / "test"])[1]
    cut = sorted(max(float(row["p_red"]), float(row["p_blue"])) for row in plain)[6]
    status, rows = answer(run, [colours / "test"], top_k=2, threshold=cut, coverage=0.9)
    assert "not calibrated" in capsys.readouterr().err
    assert status == 0
    new = ["top_1", "top_1_p", "top_2", "top_2_p", "abstained", "prediction_set"]
    assert list(rows[0]) == [*plain[0], *new]
    for row, before in zip(rows, plain, strict=True):
        assert (row["p_red"], row["top_1"]) == (before["p_red"], before["prediction"])
        assert row["top_1_p"] == row[f"p_{row['top_1']}"]
        is_unsure = float(row["top_1_p"]) < cut
        assert (row["abstained"], row["prediction"]) == (("true", "") if is_unsure else ("false", row["top_1"]))
        assert row["top_1"] in row["prediction_set"].split("|")
    assert {row["abstained"] for row in rows} == {"true", "false"}


def test_calibrated_probabilities_say_so(run: Run, colours: Path) -> None:
    plain, calibrated = (answer(run, [colours / "test"], calibrated=value)[1] for value in (False, True))
    temperature = run.calibration["temperature"]
    for before, row in zip(plain, calibrated, strict=True):
        odds = [math.log(float(one["p_red"]) / float(one["p_blue"])) for one in (before, row)]
        assert odds[0] / odds[1] == pytest.approx(temperature, rel=1e-3)
        assert float(row["temperature"]) == pytest.approx(temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, "--top-k 3: give 1 to 2"),
        ({"top_k": -1}, "--top-k -1"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": math.nan}, "--threshold nan"),
        ({"coverage": 1}, "--coverage 1"),
        ({"continues": True}, "--continue: give the file"),
        ({"output": Path()}, "--output .: it is a folder"),
        ({"output": Path("nowhere/a.csv")}, "there is no folder nowhere"),
    ],
)
def test_options_out_of_range_are_refused(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_command(run.directory, [Path("x.jpg")], **options)


@pytest.mark.parametrize("options", [{"coverage": 0.9}, {"calibrated": True}])
def test_options_that_need_a_calibration_say_so(run: Run, tmp_path: Path, options: dict[str, Any]) -> None:
    older = shutil.copytree(run.directory, tmp_path / "older")
    (older / "calibration.json").unlink()
    with pytest.raises(InputError, match=f"--{next(iter(options))}: the run has no calibration.json"):
        predict_command(older, [Path("x.jpg")], **options)


def test_patterns_and_lists_name_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw_tree(tmp_path / "photos", {"red": 2, "deep/blue": 1})
    (root / "notes.txt").write_text("no image")
    (root / "odd[1].jpg").write_bytes((root / "red" / "000.jpg").read_bytes())
    red, blue, odd = sorted((root / "red").iterdir()), root / "deep" / "blue" / "000.jpg", root / "odd[1].jpg"
    monkeypatch.chdir(root)
    assert images_in([root / "red" / "*1.jpg"]) == red[1:]
    assert images_in([Path("**/*.jpg")]) == [path.relative_to(root) for path in (blue, odd, *red)]
    assert images_in([Path("*"), odd]) == [*(path.relative_to(root) for path in (blue, odd, *red)), odd]
    for content in (f"{odd}\n\nred\r\nmissing.jpg\n", f"{odd}\0red\0missing.jpg\0"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        listed = images_in([Path("-")])
        assert listed == [odd, *(path.relative_to(root) for path in red), Path("missing.jpg")]
    for argument, message in (("*.png", r"\*.png: no images match"), ("-", "lists no images")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        with pytest.raises(InputError, match=message):
            images_in([Path(argument)])


@pytest.mark.parametrize("name", ["openvino", "keras"])
def test_the_runs_own_engine_answers(run: Run, colours: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for engine in ("openvino", "keras"):
        build = getattr(predict, f"{engine}_engine")
        monkeypatch.setattr(predict, f"{engine}_engine", lambda *a, n=engine, b=build: (used.append(n), b(*a))[1])
    again = Run.open(run.directory)
    again.config["engine"] = name
    predict_logits(again, [colours / "test" / "red" / "000.jpg"])
    assert used == [name]


def test_a_zipped_run_answers_and_leaves_nothing(
    run: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    zipped = Path(shutil.make_archive(str(tmp_path / "moved"), "zip", run.directory.parent, run.directory.name))
    paths = [colours / "test" / "red" / "000.jpg"]
    opened = open_run(zipped)
    np.testing.assert_array_equal(predict_logits(opened, paths), predict_logits(run, paths))
    assert folder_beside(zipped, "export", "onnx") == tmp_path / "moved" / "export" / "onnx"
    del opened
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, "holds no runs"),
        ({"a/status.json": b"{}", "b/status.json": b"{}"}, "holds 2 runs"),
        ({"../status.json": b"{}"}, "would leave the folder. If you trust it, unpack it yourself and give the folder"),
        ({"status.json": b"0" * 20_000_000}, "looks like a bomb"),
        ({"a/status.json": b'{"state": "failed"}'}, "bad.zip: the run has no classes.json; its status is 'failed'"),
    ],
)
def test_a_zip_without_one_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], message: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=message):
        open_run(tmp_path / "bad.zip")
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_killed_prediction_is_continued(run: Run, colours: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    images = [*sorted(colours.rglob("*.jpg")) * 30, bad]
    images_list, output = tmp_path / "images.txt", tmp_path / "answers.csv"
    images_list.write_text("\n".join(map(str, images)))
    whole = [sys.executable, "-m", "tl_research", "predict", str(run.directory), "-", "-o", str(output), "--continue"]
    with importable(), images_list.open() as stdin:
        process = subprocess.Popen(whole, stdin=stdin)
        while not (output.exists() and output.stat().st_size > 5000):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert len(output.read_text().splitlines()) < len(images)
    with importable(), images_list.open() as stdin:
        assert subprocess.run(whole, stdin=stdin, check=False).returncode == 1
    rows = table(output)
    assert [row["path"] for row in rows] == list(map(str, images))
    assert [row["path"] for row in rows if row["error"]] == [str(bad)]


def test_evaluate_prints_the_metrics_of_other_data(run: Run, tmp_path: Path) -> None:
    other = draw_tree(tmp_path / "other", {"train/red": 2, "train/blue": 2, "test/red": 3, "test/blue": 3}, seed=5)
    result = command("evaluate", str(run.directory), "data=folder", f"data.root={other}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["accuracy"] > 0.9
    assert (answer["split"], answer["num"]) == ("test", 6)


@pytest.mark.parametrize(
    ("counts", "split", "judged"),
    [
        ({"red": 4, "blue": 3}, None, ("all", 7)),
        ({"red": 2}, None, ("all", 2)),
        ({"train/red": 2, "train/blue": 2, "test/red": 1}, None, ("test", 1)),
        ({"train/red": 2, "train/blue": 2, "test/red": 1}, "all", ("all", 5)),
        ({"test/red/patient1": 1}, None, ("test", 1)),
    ],
)
def test_evaluate_judges_every_labelled_image(
    run: Run, tmp_path: Path, counts: dict[str, int], split: str | None, judged: tuple[str, int]
) -> None:
    for folder, count in counts.items():
        drawn = draw_tree(tmp_path / "drawn", {"red": count})
        (drawn / "red").rename(tmp_path / "drawn" / "x")
        (tmp_path / "other" / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drawn" / "x").rename(tmp_path / "other" / folder)
    data = compose(["data=folder", f"data.root={tmp_path / 'other'}"]).data.load_labelled(run.class_names())
    answer = evaluate_on(run, data, split)
    assert (answer["split"], answer["num"]) == judged
    absent = not any("blue" in folder for folder in counts if judged[0] == "all" or folder.startswith("test"))
    assert (answer["recall"]["blue"] is None) == absent


def test_a_run_without_a_model_is_refused_once(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for name in ("classes.json", "status.json"):
        text = (run.directory / name).read_text()
        (unfinished / name).write_text(text.replace('"done"', '"interrupted"'))
    with pytest.raises(InputError, match=r"has no model.keras; its status is 'interrupted'"):
        open_run(unfinished)
    assert capsys.readouterr() == ("", "")


def test_evaluate_refuses_other_classes(run: Run, tmp_path: Path) -> None:
    other = draw_tree(tmp_path / "other", {"red": 5, "green": 5})
    with pytest.raises(InputError, match="green"):
        evaluate_on(run, compose(["data=folder", f"data.root={other}"]).data.load())


@pytest.mark.parametrize(
    "arguments",
    [["predict", "nowhere", "x.jpg"], ["evaluate", "RUN"], ["evaluate", "RUN", "data=folder", "data.root=nowhere"],
     ["evaluate", "RUN", "data=fodler"], ["predict", "RUN", "EMPTY"], ["predict", "RUN", "x.jpg", "-o", "no/x.csv"]],
)  # fmt: skip
def test_bad_input_is_one_line(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run.directory), "EMPTY": str(tmp_path / "empty")}
    result = command(*[places.get(a, a) for a in arguments], cwd=tmp_path)
    assert result.returncode == 2
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upright.JPG", "that is the name of an image"),
        ("answers.xlsx", "give --format, or a name that ends on .csv"),
        ("pipe", "not a regular file; leave out --output"),
        ("run/predictions.csv", "it is a file of the run in"),
        ("run/status.json", "it is a file of the run in"),
    ],
)
def test_only_a_table_is_replaced(run: Run, colours: Path, tmp_path: Path, name: str, message: str) -> None:
    copy = shutil.copytree(run.directory, tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    before = (copy / "predictions.csv").read_bytes()
    with pytest.raises(InputError, match=message):
        predict_command(copy, [str(colours)], tmp_path / name)
    assert (copy / "predictions.csv").read_bytes() == before
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_is_followed(run: Run, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("earlier")
    (tmp_path / "link.csv").symlink_to("answers.csv")
    predict_command(run.directory, [str(colours)], tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "answers.csv").read_text().startswith("path,")


@pytest.mark.parametrize(("images", "message"), [(["", "."], "one of them is empty"), (["no/a.jpg"], "does not exist")])
def test_nothing_named_is_bad_input(images: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        images_in(images)


def test_another_table_in_place_of_answers_is_named(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.directory, tmp_path / "run")
    (copy / "predictions.csv").write_text("path,prediction,error\na.jpg,a,\n")
    with pytest.raises(InputError, match=r"predictions.csv: has no column 'label'.* fresh=true"):
        Run.open(copy).answers("predictions.csv")


@pytest.mark.parametrize(("split", "message"), [("train", "it has learned from them"), ("test", "own test images")])
def test_evaluating_the_runs_own_images_warns(
    run: Run, colours: Path, split: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = SimpleNamespace(args=["data=folder", f"data.root={colours}"])
    evaluate_command(context, run.directory, split)  # type: ignore[arg-type]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "images are the run's own" in line]
    assert message in line


def test_a_zip_has_a_card_beside_it(run: Run, tmp_path: Path) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", run.directory))
    card_command(zipped)
    assert "# " in (tmp_path / "mine-model_card.md").read_text()
