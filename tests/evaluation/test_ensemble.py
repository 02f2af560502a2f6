"""Ensembles of runs: chosen by validation, evaluated as saved, a run like any other. Modules: best_runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import draw_tree
from tests.experiment.test_experiment import table
from tl_research import InputError, Run, compose
from tl_research.__main__ import app
from tl_research.config.resume import resumed
from tl_research.evaluation.explain import Explainer
from tl_research.evaluation.predict import predict_logits
from tl_research.metrics.probabilities import softmax
from tl_research.reports.best_runs import best_runs
from tl_research.reports.compare import compare_runs
from tl_research.reports.leaderboard import Leaderboard, collect
from tl_research.serving.facts import facts_of


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """Two runs that differ in head and input size, one that diverged, and their ensemble."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, *options in (("0", "head=prototype", "backbone.image_size=48"), ("1", "backbone.image_size=32")):
        data = ["backbone=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]
        data += ["report.thumbnails=false"] if name == "1" else []
        compose([*data, *options]).run(folder / name)
    Run.record_death(folder / "2", "diverged", "its loss is no number")
    result = CliRunner().invoke(app, ["ensemble", str(folder)])
    assert result.exit_code == 0, result.output
    assert "2: passed over: diverged: its loss is no number" in result.stderr
    return folder


@pytest.fixture(scope="module")
def joined(sweep: Path) -> Run:
    return Run.open(sweep / "ensemble_of_2")


def probabilities(done: Run, name: str, split: str) -> np.ndarray:
    rows = [row for row in table(done.directory / name) if row["split"] == split]
    return np.array([[float(row["p_blue"]), float(row["p_red"])] for row in rows])


def test_an_ensemble_is_evaluated_as_it_is_saved(sweep: Path, joined: Run) -> None:
    assert joined.status["state"] == "done"
    members = [Run.open(sweep / name) for name in ("0", "1")]
    for name, split, tolerance in (("validation.csv", "val", 1e-6), ("predictions.csv", "test", 5e-3)):
        mean = np.mean([probabilities(member, name, split) for member in members], axis=0)
        assert probabilities(joined, name, split) == pytest.approx(mean, abs=tolerance)
    paths = [Path(row["path"]) for row in table(joined.directory / "predictions.csv")]
    saved = softmax(np.array(predict_logits(joined, paths)))
    answers = np.concatenate([probabilities(joined, "predictions.csv", split) for split in ("val", "test")])
    assert saved == pytest.approx(answers, abs=1e-6)
    assert joined.metrics["test_accuracy"] > 0.9
    assert joined.metrics["num_members"] == 2
    assert joined.calibration["optimistic"]
    assert not joined.shows_pictures, "as one member does not"


@pytest.mark.slow
def test_other_commands_take_an_ensemble_for_a_run(sweep: Path, joined: Run) -> None:
    assert facts_of(joined)["image_size"] == 48
    assert facts_of(joined)["class_names"] == ["blue", "red"]
    (pair,) = compare_runs([sweep / "1", joined.directory])
    assert pair.comparison.num == joined.metrics["num_test"]
    (board,) = Leaderboard.for_each_data_set(collect(sweep))
    assert "ensemble of 2" in [cell for line in board.table()[1] for cell in line]
    assert joined.weights["backbone"] == "tiny"
    assert len(best_runs(sweep)[0]) == 2  # and not the ensemble
    card = (joined.directory / "model_card.md").read_text()
    assert "joined 2 runs" in card
    with pytest.raises(InputError, match="it is an ensemble, which is not trained"):
        resumed([f"resume={joined.directory}"])
    paths = [Path(row["path"]) for row in table(joined.directory / "predictions.csv")][:2]
    for method in ("map", "occlusion"):
        for one in Explainer(joined, None, method).explain(paths):
            assert one.heat is not None
            assert one.prediction == one.path.parent.name


def drop(run_: Path) -> None:
    (run_ / "model.keras").unlink()


def split_otherwise(run_: Path) -> None:
    text = (run_ / "predictions.csv").read_text()
    (run_ / "predictions.csv").write_text(text.replace(",val,", ",test,", 1))


def squash(run_: Path) -> None:
    config = (run_ / "config.yaml").read_text()
    (run_ / "config.yaml").write_text(config.replace("resize: squash", "resize: crop"))


def other_data(run_: Path) -> None:
    metrics = json.loads((run_ / "metrics.json").read_text())
    (run_ / "metrics.json").write_text(json.dumps(metrics | {"dataset": "other"}))


def rename_class(run_: Path) -> None:
    (run_ / "classes.json").write_text('["blue", "rot"]')


@pytest.mark.parametrize(
    ("harm", "arguments", "reason"),
    [
        (None, ["--best", "9"], "--best 9: there are 2 runs"),
        (None, ["--best", "1"], "needs at least two"),
        (None, [], "ensemble_of_2: there is a run in it already"),
        (drop, [], r"1 run\(s\) below it.*0: passed over: no model.keras"),
        (split_otherwise, [], "1 validation and test images are not those of .*such as"),
        (squash, [], r"its data.resize \(squash\) is not that of .*\(crop\)"),
        (other_data, [], "of 2 data sets"),
        (rename_class, [], "its classes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_joined_is_one_line(
    harm: Callable[[Path], None] | None, arguments: list[str], reason: str, sweep: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    if harm:
        shutil.rmtree(copy / "ensemble_of_2")
        harm(copy / "0")
    before = sorted(copy.rglob("*"))
    with pytest.raises(InputError, match=reason):
        CliRunner().invoke(app, ["ensemble", str(copy), *arguments], catch_exceptions=False)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("folder", ["nothing", "photos", "sweep/0"])
def test_a_folder_that_is_no_sweep_is_named(folder: str, sweep: Path, tmp_path: Path) -> None:
    draw_tree(tmp_path / "photos", {"red": 1})
    where = sweep / "0" if folder == "sweep/0" else tmp_path / folder
    with pytest.raises(InputError, match=f"{where}: (no runs|1 run|does not exist)"):
        best_runs(where)
