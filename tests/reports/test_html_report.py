"""The report: one page from run directories alone, that holds any text and needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import t
from typer.testing import CliRunner

from tests.conftest import draw_tree
from tests.reports.test_leaderboard import draw_run
from tl_research import compose
from tl_research.__main__ import app
from tl_research.data.datamodule import DataModule
from tl_research.data.sources import Folder
from tl_research.evaluation.evaluate import MOST_MISTAKES, THUMBNAIL, mistakes
from tl_research.reports import html_report

HOSTILE = "</script><script>alert(1)</script><!-- @DATA@ \u2028 \x00 \"'&"


def thumbnail() -> str:
    content = io.BytesIO()
    Image.new("RGB", (128, 96), (200, 60, 60)).save(content, "jpeg")
    return base64.b64encode(content.getvalue()).decode()


def draw_answers(folder: Path, names: tuple[str, ...] = ("cat", "dog"), *, with_mistakes: bool = True) -> None:
    """Answers of a run to five test images, two of them wrong, and to a validation image, which no matrix counts."""
    one, other = names
    table = [
        (one, one, 0.9, "test"), (one, other, 0.6, "test"), (other, one, 0.8, "test"), (other, other, 0.7, "test"),
        (other, other, 0.7, "test"), (one, other, 0.99, "val"),
    ]  # fmt: skip
    header = ["path", "split", "label", "prediction", f"p_{one}", f"p_{other}"]
    lines = [
        [f"/photos/{i}.jpg", split, label, answer, *((p, 1 - p) if answer == one else (1 - p, p))]
        for i, (label, answer, p, split) in enumerate(table)
    ]
    (folder / "predictions.csv").write_text(report_csv(header, lines))
    (folder / "classes.json").write_text(json.dumps(names))
    if with_mistakes:
        wrong = {"path": "/photos/2.jpg", "label": other, "prediction": one, "probability": 0.8, "jpeg": thumbnail()}
        (folder / "mistakes.json").write_text(json.dumps([wrong]))


def report_csv(header: list[str], lines: list[list[Any]]) -> str:
    from tl_research.runs.run import as_csv

    return as_csv(header, lines)


def draw_history(folder: Path, epochs: int, stages: tuple[str, ...] = ("head",)) -> None:
    header = ["epoch", "stage", "accuracy", "loss", "val_accuracy", "val_loss", "seconds"]
    lines = [
        [e, stages[e * len(stages) // epochs], 0.5 + e / (3 * epochs), 1 / (1 + e), 0.5 + e / (4 * epochs), 1.0, 0.1]
        for e in range(epochs)
    ]
    (folder / "history.csv").write_text(report_csv(header, lines))


def draw_sweep(folder: Path) -> Path:
    """Two heads at three fractions of the data, two seeds each, and one failure; the best is `mlp` of all data."""
    for head, more in (("linear", 0.0), ("mlp", 0.05)):
        for fraction in (0.1, 0.3, 1.0):
            for seed in (0, 1):
                accuracy = 0.6 + more + 0.3 * fraction + 0.01 * seed
                run = folder / f"{head}-{fraction}-{seed}"
                overrides = [f"head={head}", f"data.fraction={fraction}", f"seed={seed}", "data.root=/my photos"]
                numbers = {"val_accuracy": accuracy, "test_accuracy": 0.99 - accuracy / 2, "num_parameters": 3_400_000}
                draw_run(run, overrides, **numbers, seconds_head=2.0 + seed, seconds_save=1.0)
                draw_history(run, 6 if head == "mlp" else 1, ("head", "finetune") if head == "mlp" else ("head",))
                draw_answers(run)
    draw_run(
        folder / "broken", ["head=knn", "data.fraction=0.1", "data.root=/my photos"], "failed", "InputError: no weights"
    )
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return draw_sweep(tmp_path)


class Scripts(HTMLParser):
    """The <script> elements of a page as a browser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[dict[str, str | None], str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.inside = True
            self.elements.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.elements[-1] = (self.elements[-1][0], self.elements[-1][1] + data)


def shown_by(page: str) -> dict[str, Any]:
    """The content that a browser would find in a page. It holds two scripts, whatever texts there are."""
    parser = Scripts()
    parser.feed(page)
    assert len(parser.elements) == 2
    attributes, text = parser.elements[0]
    assert attributes == {"type": "application/json", "id": "data"}
    return dict(json.loads(text))


def shown_for(folder: Path) -> dict[str, Any]:
    return shown_by(html_report.write_report(folder).read_text())


def test_rows_are_configurations_in_the_leaderboards_order(sweep: Path) -> None:
    shown = shown_for(sweep)
    assert shown["keys"] == ["head", "data.fraction"]
    assert [row["values"] for row in shown["rows"][:2]] == [["mlp", "1.0"], ["linear", "1.0"]]
    assert shown["rows"][-1]["values"] == ["knn", "0.1"], "a failure comes last"
    first = shown["rows"][0]
    assert first["cells"][:4] == ["1", "mlp", "1.0", "2"]
    assert (first["val"], first["seconds"], first["parameters"]) == (0.955, 3.5, 3.4e6)
    assert [shown["runs"][i]["name"] for i in first["runs"]] == ["mlp-1.0-0", "mlp-1.0-1"]


def test_the_test_metric_is_shown_and_ranks_nothing(sweep: Path) -> None:
    shown = shown_for(sweep)
    tests = [row["test"] for row in shown["rows"] if row["test"] is not None]
    assert tests == sorted(tests), "it is drawn to be the worse, the better the validation metric"
    assert shown["runs"][shown["best"]["run"]]["name"] == "mlp-1.0-1"


def test_random_weights_have_ranks_of_their_own(sweep: Path) -> None:
    overrides = ["head=mlp", "data.fraction=1.0", "data.root=/my photos", "backbone.weights=null"]
    draw_run(sweep / "random", overrides, val_accuracy=1.0, random_weights=True)
    shown = shown_for(sweep)
    assert [row["cells"][0] for row in shown["rows"]] == ["1", "2", "3", "4", "5", "6", "1", ""]
    assert [row["random"] for row in shown["rows"]] == [False] * 6 + [True, False], "though they came to 1.0"
    assert shown["runs"][shown["best"]["run"]]["name"] == "mlp-1.0-1"


def test_a_command_repeats_its_run(sweep: Path) -> None:
    commands = {run["name"]: run["command"] for run in shown_for(sweep)["runs"]}
    arguments = shlex.split(commands["mlp-0.3-1"])
    assert arguments == ["python", "train.py", "head=mlp", "data.fraction=0.3", "seed=1", "data.root=/my photos"]
    assert "'data.root=/my photos'" in commands["mlp-0.3-1"]


def test_a_runs_command_has_all_its_overrides(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=mine", "missing_weights=random", "fresh=true"], val_accuracy=0.9)
    sources = [{"path": "hydra.conf", "provider": "hydra"}, {"path": "/my conf", "provider": "command-line"}]
    noted = {"hydra": {"runtime": {"config_sources": sources}, "job": {"config_name": "mine"}}}
    (tmp_path / "0" / ".hydra" / "hydra.yaml").write_text(json.dumps(noted))
    draw_run(tmp_path / "1", [], val_accuracy=0.8)
    assert [run["command"] for run in shown_for(tmp_path)["runs"]] == [
        "python train.py --config-dir '/my conf' --config-name mine head=mine missing_weights=random",
        "python train.py",
    ]


def test_a_run_started_from_python_has_no_command(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", [], val_accuracy=0.9)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").unlink()
    assert shown_for(tmp_path)["runs"][0]["command"] is None


def test_curves_are_those_of_the_history(sweep: Path) -> None:
    curves = {run["name"]: run["curve"] for run in shown_for(sweep)["runs"]}
    assert curves["linear-1.0-0"] is None, "a head that was solved at once has no epochs"
    assert curves["broken"] is None
    curve = curves["mlp-1.0-0"]
    assert curve["epoch"] == [0, 1, 2, 3, 4, 5]
    assert curve["stage"] == ["head"] * 3 + ["finetune"] * 3
    assert set(curve) == {"epoch", "stage", "accuracy", "loss", "val_accuracy", "val_loss"}
    assert curve["val_accuracy"][2] == pytest.approx(0.5 + 2 / 24, abs=1e-5)


def test_a_thinned_curve_has_the_epoch_that_was_kept(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=mlp"], val_accuracy=0.9, best_epoch=7)
    draw_history(tmp_path / "0", 5000)
    (run,) = shown_for(tmp_path)["runs"]
    assert run["kept"] == 7
    assert 7 in run["curve"]["epoch"]


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=mlp"], val_accuracy=0.9)
    draw_history(tmp_path / "0", 5000)
    (run,) = shown_for(tmp_path)["runs"]
    epochs = run["curve"]["epoch"]
    assert (len(epochs), epochs[0], epochs[-1]) == (html_report.MOST_POINTS, 0, 4999)
    assert np.ptp(np.diff(epochs)) <= 1


def test_effects_are_means_over_configurations_with_an_interval(sweep: Path) -> None:
    head, fraction = shown_for(sweep)["effects"]
    assert (head["key"], head["numeric"]) == ("head", False)
    assert (fraction["key"], fraction["numeric"], fraction["log"]) == ("data.fraction", True, True)
    (smallest,) = (group for group in fraction["groups"] if group["value"] == "0.1")
    values = [0.635, 0.685]
    half = t.ppf(0.975, 1) * np.std(values, ddof=1) / np.sqrt(2)
    assert smallest["x"] == 0.1
    assert smallest["mean"] == pytest.approx(0.66)
    assert smallest["interval"] == pytest.approx([max(0.66 - half, 0), min(0.66 + half, 1)], abs=1e-5)
    assert len(smallest["rows"]) == 2


def test_a_key_whose_values_lie_close_gets_a_plain_axis(tmp_path: Path) -> None:
    for number, (fraction, head) in enumerate([("0.5", "8"), ("1.0", "b"), ("0.75", "b")]):
        draw_run(tmp_path / str(number), [f"data.fraction={fraction}", f"head={head}"], val_accuracy=0.9)
    effects = {effect["key"]: effect for effect in shown_for(tmp_path)["effects"]}
    assert (effects["data.fraction"]["numeric"], effects["data.fraction"]["log"]) == (True, False)
    assert not effects["head"]["numeric"], "one of its values is no number"


def test_the_matrix_counts_test_images_of_the_best_run(sweep: Path) -> None:
    best = shown_for(sweep)["best"]
    counts = {(label, prediction): count for label, prediction, count in best["counts"]}
    assert counts == {("cat", "cat"): 1, ("cat", "dog"): 1, ("dog", "cat"): 1, ("dog", "dog"): 2}
    assert (best["classes"], best["num_wrong"]) == (["cat", "dog"], 2)
    (mistake,) = best["mistakes"]
    assert Image.open(io.BytesIO(base64.b64decode(mistake["jpeg"]))).size == (128, 96)


def test_mistakes_of_an_older_run_have_no_pictures(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=mlp"], val_accuracy=0.9)
    draw_answers(tmp_path / "0", with_mistakes=False)
    wrong = shown_for(tmp_path)["best"]["mistakes"]
    assert [(one["path"], one["prediction"], one["probability"]) for one in wrong] == [
        ("/photos/2.jpg", "cat", 0.8),
        ("/photos/1.jpg", "dog", 0.6),
    ], "the surest first; the validation image is not among them"


def test_the_best_run_shows_each_class_and_how_far_to_trust_it(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bins = [{"low": 0.9, "high": 1, "num": 5, "confidence": 0.95, "accuracy": 0.6}]
    known = {"temperature": 2.0, "reliability": {"plain": bins, "calibrated": bins}}
    (sweep / "mlp-1.0-1" / "calibration.json").write_text(json.dumps(known))
    monkeypatch.setattr(html_report, "heat_maps", lambda run, paths: {"/photos/2.jpg": "map", "/photos/1.jpg": "map"})
    best = shown_by(html_report.write_report(sweep, maps=True).read_text())["best"]
    assert [(one["count"], one["precision"], one["recall"]) for one in best["scores"]] == [
        (2, 0.5, 0.5),
        (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
    ]
    for kind in ("roc", "precision_recall"):
        first, *others = (curve["name"] for curve in best["curves"][kind])
        assert (first, set(others)) == ("mean", {"cat", "dog"})
    assert (best["temperature"], best["reliability"]) == (2.0, known["reliability"])
    mistakes = {one["path"] for one in best["mistakes"]}
    assert "/photos/3.jpg" in {one["path"] for one in best["unsure"]}
    assert not mistakes & {one["path"] for one in best["unsure"]}, "no picture comes twice"
    assert best["mistakes"][0]["map"] == "map"


def test_a_network_that_cannot_be_explained_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_run(tmp_path / "run", ["head=mlp"], val_accuracy=0.9)
    draw_answers(tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_bytes(b"nothing")
    assert "map" in shown_by(html_report.write_report(tmp_path / "run", maps=True).read_text())["best"]["unsure"][0]
    assert "no maps in the report" in caplog.text


def test_a_single_run_is_reported_in_its_own_directory(tmp_path: Path) -> None:
    draw_run(tmp_path / "12-00-00", ["head=mlp"], val_accuracy=0.9, val_accuracy_low=0.8, val_accuracy_high=0.95)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "12-00-00")])
    assert result.exit_code == 0, result.output
    assert Path(result.output.replace("\n", "")) == tmp_path / "12-00-00" / "report.html"
    shown = shown_by((tmp_path / "12-00-00" / "report.html").read_text())
    assert [run["name"] for run in shown["runs"]] == ["12-00-00"]
    assert shown["rows"][0]["val_interval"] == [0.8, 0.95]
    assert shown["effects"] == []


def test_failures_alone_are_a_report_too(tmp_path: Path) -> None:
    for name, state in (("a", "failed"), ("b", "interrupted"), ("c", "pruned")):
        draw_run(tmp_path / name, [f"head={name}"], state, f"because of {name}")
    shown = shown_for(tmp_path)
    assert shown["best"] is None
    assert {(run["state"], run["reason"]) for run in shown["runs"]} >= {("pruned", "because of c")}
    assert all(row["val"] is None and row["cells"][0] == "" for row in shown["rows"])


def test_where_it_comes_from(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=mlp"], val_accuracy=0.9, version_keras="3.15.1")  # type: ignore[arg-type]
    (tmp_path / "0" / "config.yaml").write_text(yaml.safe_dump({"data": {"root": "/my photos", "val": 0.2}}))
    (run,) = shown_for(tmp_path)["runs"]
    assert (run["data"], run["versions"]) == ("/my photos", {"keras": "3.15.1"})


def test_no_number_is_no_number(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=a"], val_accuracy=float("nan"), test_accuracy=float("inf"))
    draw_run(tmp_path / "1", ["head=b"], val_accuracy=0.5)
    (tmp_path / "1" / "mistakes.json").write_text(
        '[{"path": "x", "label": "a", "prediction": "b", "probability": NaN}]'
    )
    shown = shown_for(tmp_path)
    assert {row["values"][0]: (row["val"], row["test"]) for row in shown["rows"]} == {
        "a": (None, None),
        "b": (0.5, None),
    }


@pytest.mark.parametrize("name", ["history.csv", "predictions.csv", "mistakes.json", "classes.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00{", b"path,split\nx", b"{}", b'[{"a": 1}, 7]'])
def test_a_damaged_file_does_not_hide_the_others(sweep: Path, name: str, content: bytes) -> None:
    (sweep / "mlp-1.0-1" / name).write_bytes(content)
    assert len(shown_for(sweep)["runs"]) == 13


@given(st.text(), st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_survives_embedding(text: str, any_text: str) -> None:
    shown = {"a": text, text: [any_text, HOSTILE, f"</ScRiPt {text}"]}
    embedded = html_report.embedded(shown)
    assert json.loads(embedded) == shown
    assert "<" not in embedded
    assert embedded.isascii()
    assert shown_by(html_report.page(shown)) == shown


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    draw_run(tmp_path / "a<img src=x onerror=alert(1)>", [f"head={HOSTILE[:60]}"], val_accuracy=0.9)
    draw_run(tmp_path / "b", ["head=b"], "failed", HOSTILE)
    draw_answers(tmp_path / "a<img src=x onerror=alert(1)>", ("<b>", HOSTILE.replace("\x00", "")))
    text = html_report.write_report(tmp_path).read_text()
    shown = shown_by(text)
    assert shown["best"]["classes"][0] == "<b>"
    assert HOSTILE in {run["reason"] for run in shown["runs"]}
    assert "onerror" in text
    assert "<img" not in text


def test_the_page_needs_and_may_fetch_nothing(sweep: Path) -> None:
    text = html_report.write_report(sweep).read_text()
    addresses = set(re.findall(r"\w+://[\w./]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a format, which no browser looks up"
    assert not re.findall(r"<(link|iframe|img|object|embed)\b|@import|url\((?!#)", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    parser = Scripts()
    parser.feed(text)
    digest = base64.b64encode(hashlib.sha256(parser.elements[1][1].encode()).digest()).decode()
    assert policy is not None
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy[1]


def test_no_script_of_ours_parses_text_as_html() -> None:
    for name in html_report.SCRIPTS:
        script = (html_report.TEMPLATES / name).read_text()
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
        assert "</script" not in script


def test_hundreds_of_runs_are_one_page_of_a_size_that_opens(tmp_path: Path) -> None:
    for number in range(200):
        run = tmp_path / str(number)
        draw_run(run, [f"head={'abcd'[number % 4]}", f"optimizer.l2={number // 4}"], val_accuracy=number / 250)
    lines = "".join(f"{e},head,0.123456789,0.123456789,0.123456789,0.123456789,0.1\n" for e in range(1000))
    for number in range(200):
        history = "epoch,stage,accuracy,loss,val_accuracy,val_loss,seconds\n" + lines
        (tmp_path / str(number) / "history.csv").write_text(history)
    assert html_report.write_report(tmp_path).stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    root = draw_tree(
        tmp_path_factory.mktemp("photos"), {"train/blue": 4, "train/red": 4, "test/blue": 20, "test/red": 3}
    )
    return Folder(root=str(root)).load()


def test_the_worst_mistakes_come_first_with_a_small_picture(data: DataModule) -> None:
    indices = data.indices("test")
    labels = data.labels[indices]
    logits = np.zeros((len(labels), 2))
    logits[np.arange(len(labels)), 1 - labels] = np.linspace(1, 3, len(labels))  # all wrong, the last the surest
    worst = mistakes(data, logits)
    assert len(worst) == MOST_MISTAKES
    assert [one["path"] for one in worst] == [str(data.paths[i]) for i in indices[::-1][:MOST_MISTAKES]]
    assert worst[0]["probability"] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-5)
    assert (worst[0]["label"], worst[0]["prediction"]) == ("red", "blue")
    with Image.open(io.BytesIO(base64.b64decode(worst[0]["jpeg"]))) as picture, Image.open(worst[0]["path"]) as photo:
        assert picture.format == "JPEG"
        assert max(picture.size) <= THUMBNAIL
        assert picture.width / picture.height == pytest.approx(photo.width / photo.height, rel=0.03)
        assert np.asarray(picture.convert("RGB")).mean((0, 1)) == pytest.approx(np.asarray(photo).mean((0, 1)), abs=4)


def test_a_run_without_mistakes_has_an_empty_list(data: DataModule) -> None:
    assert mistakes(data, np.eye(2)[data.labels[data.indices("test")]]) == []


def test_a_deleted_photograph_only_loses_its_picture(tmp_path: Path) -> None:
    root = draw_tree(tmp_path, {"train/blue": 4, "train/red": 4, "test/blue": 2, "test/red": 2})
    loaded = Folder(root=str(root)).load()
    (root / "test" / "blue" / "000.jpg").unlink()
    worst = mistakes(loaded, np.eye(2)[1 - loaded.labels[loaded.indices("test")]])
    assert sorted(bool(one["jpeg"]) for one in worst) == [False, True, True, True]


def test_a_run_keeps_its_mistakes(tmp_path: Path, colours: Path) -> None:
    run = compose(["backbone=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]).run(tmp_path / "run")
    recorded = json.loads((run.directory / "mistakes.json").read_text())
    wrong = round((1 - run.metrics["test_accuracy"]) * run.metrics["num_test"])
    assert len(recorded) == min(wrong, MOST_MISTAKES)
    assert shown_for(run.directory)["best"]["num_wrong"] == wrong
