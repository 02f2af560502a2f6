"""Predictions for other images: same decode path, a row with the error for a bad file, other classes refused."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, draw_tree
from tl_research import InputError, Run, compose
from tl_research.commands.arguments import open_run
from tl_research.evaluation.predict import evaluate_on, images_in, predict_images


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
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [bool(row["error"]) for row in rows] == [True, False, True]
    assert rows[1]["prediction"] == "red"
    assert rows[0]["p_red"] == ""
    assert result.stderr == ""


@pytest.mark.slow
def test_folders_are_searched_and_a_csv_is_written(run: Run, colours: Path, tmp_path: Path) -> None:
    result = command("predict", str(run.directory), str(colours / "test"), "-o", "answers.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 13
    with pytest.raises(InputError, match="no images"):
        images_in([tmp_path])


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
