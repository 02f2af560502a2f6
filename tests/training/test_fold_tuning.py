"""Fine-tuning chosen by folds (`fold_tuning`, `run_transfer`), and interpolated weights."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from tests.conftest import draw_noise, draw_tree
from tl_research import InputError, Run, compose
from tl_research.experiment import flow
from tl_research.training import fold_tuning
from tl_research.training.fold_tuning import Tuning, choose_tuning
from tl_research.training.trained_weights import interpolate
from tl_research.training.tuned_ensemble import choose_members

TUNED = [
    "backbone=tiny", "data=folder", "callbacks=none", "transfer=finetune", "transfer.backbone.epochs=2",
    "transfer.backbone.learning_rate=0.003", "transfer.choose_by=folds", "deterministic=true",
]  # fmt: skip


def run(directory: Path, data: Path, *overrides: str) -> Run:
    return compose([*TUNED, f"data.root={data}", *overrides]).run(directory)


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    with (directory / name).open() as file:
        return list(csv.DictReader(file))


def test_half_of_the_way_is_the_mean() -> None:
    start = {0: np.zeros(3, np.float32), 1: np.ones(2, np.float32), 2: np.array(7, np.uint32)}
    end = {0: np.ones(3, np.float32), 2: np.array(9, np.uint32)}
    half = interpolate(start, end, 0.5)
    assert half[0].tolist() == [0.5] * 3
    assert half[0].dtype == np.float32
    assert half[2] == 9
    assert 1 not in half
    assert interpolate(start, end, 1.0)[0] is end[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transfer.choose_by=fold"], "^transfer.choose_by=fold: should be validation or folds$"),
        (["transfer.interpolate=2"], "^transfer.interpolate=2: should be false or true$"),
        (["transfer.backbone=null"], "^transfer.backbone=null: should be a stage$"),
        (["optimizer=adam"], "compares with a head that is solved; add optimizer=lbfgs head=linear"),
        (["transfer.head.unfreeze=1", "transfer.choose_by=validation", "transfer.interpolate=true"],
         "interpolate=true: one stage of the head"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_so_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose([*TUNED, "data.root=PHOTOS", *overrides])


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
@pytest.mark.parametrize(("better", "worse", "is_tuned"), [(30, 0, True), (3, 2, False), (0, 0, False)])
def test_tuning_must_gain_more_than_a_standard_error(monitor: str, better: int, worse: int, is_tuned: bool) -> None:
    """Of 100 images, so many are answered rightly by one of both alone."""
    labels, right, wrong = np.zeros(100, int), [2.0, 0.0], [0.0, 2.0]
    frozen, tuned = np.tile(right, (100, 1)), np.tile(right, (100, 1))
    frozen[:better], tuned[better : better + worse] = wrong, wrong
    logits = {Tuning(): frozen, (other := Tuning(epochs=2)): tuned}
    assert choose_tuning(logits, labels, np.arange(100), monitor) == (other if is_tuned else Tuning())


@pytest.mark.parametrize("groups", [None, np.repeat([0, 1, 2], [30, 10, 60])])
def test_what_one_group_gains_is_one_gain(groups: np.ndarray | None) -> None:
    """One patient's 30 images gain, another's 10 lose: beyond noise if each image stood alone."""
    labels, frozen, tuned = np.zeros(100, int), np.tile([1.0, 0.0], (100, 1)), np.tile([1.0, 0.0], (100, 1))
    frozen[:30], tuned[30:40] = [0.0, 1.0], [0.0, 1.0]
    logits = {Tuning(): frozen, (other := Tuning(epochs=2)): tuned}
    assert choose_tuning(logits, labels, np.arange(100), "loss", groups) == (other if groups is None else Tuning())
    members = choose_members((frozen, labels), (tuned, labels), groups)
    assert members == (["tuned"] if groups is None else ["frozen"])


@pytest.mark.slow
def test_folds_choose_and_each_image_judges_once(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours, "transfer.interpolate=true", "data.val=0.25")
    metrics, tried = done.metrics, rows(tmp_path / "run", "folds.csv")
    assert [len(tried), tried[0]["epochs"]] == [1 + 3 * 2 * 4, "0"]
    best = min(tried, key=lambda row: float(row["loss"]))
    chosen = [float(best[key]) for key in ("rate", "epochs", "alpha", "loss")]
    keys = ("rate_factor", "tuned_epochs", "alpha", "fold_loss")
    assert [metrics[key] for key in keys] == pytest.approx(chosen, rel=1e-5)
    assert metrics["frozen_fold_loss"] > 2 * metrics["fold_loss"]
    history = rows(tmp_path / "run", "history.csv")
    assert len(history) == 1 + metrics["tuned_epochs"]
    assert len(done.answers("validation.csv")) == metrics["num_val"]


@pytest.mark.slow
def test_where_tuning_does_not_help_the_frozen_head_stays(tmp_path: Path) -> None:
    noise = draw_noise(tmp_path / "noise", ("train", "test"), 12)
    tuned = run(tmp_path / "tuned", noise, "transfer.backbone.learning_rate=0.1").metrics
    frozen = compose([*TUNED[:3], "transfer=frozen", f"data.root={noise}"]).run(tmp_path / "frozen").metrics
    assert tuned["tuned_epochs"] == 0
    for key in ("test_loss", "val_loss", "test_accuracy", "cv_accuracy"):
        assert tuned[key] == frozen[key]


@pytest.mark.slow
def test_without_time_the_frozen_head_stays(tmp_path: Path, colours: Path) -> None:
    assert run(tmp_path / "run", colours, "trainer.time_limit=0.0001").metrics["tuned_epochs"] == 0
    assert len(rows(tmp_path / "run", "folds.csv")) == 1


@pytest.mark.parametrize(
    ("copies", "message"),
    [(0, r"class 'blue' has 2 image\(s\) to learn from"), (2, "it takes 3 groups .* or copies .*, and there are 2")],
)
def test_a_class_smaller_than_the_folds_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int, message: str
) -> None:
    few = draw_tree(tmp_path / "few", {"train/blue": 2, "train/red": 8, "test/blue": 2, "test/red": 2})
    for number in range(copies):
        shutil.copy(few / "train/blue/000.jpg", few / f"train/blue/copy{number}.jpg")
    monkeypatch.setattr(flow, "start_backend", Mock(side_effect=AssertionError))
    with pytest.raises(
        InputError,
        match=rf"^transfer.choose_by=folds: {message}.*give transfer.choose_by=validation transfer.ensemble=false$",
    ):
        run(tmp_path / "run", few, "data.min_images=1")


@pytest.mark.slow
def test_a_rate_that_diverges_in_the_folds_is_no_candidate(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_tuning, "RATES", (1e30, 2e30, 1.0))
    assert run(tmp_path / "run", colours, "transfer.backbone.epochs=1").status["state"] == "done"
    assert [float(row["rate"]) for row in rows(tmp_path / "run", "folds.csv")] == [1.0, 1.0]


@pytest.mark.slow
def test_validation_chooses_a_share_of_the_way(tmp_path: Path, colours: Path) -> None:
    options = ["transfer.choose_by=validation", "transfer.backbone.unfreeze=all"]
    plain = run(tmp_path / "plain", colours, *options).metrics
    some = run(tmp_path / "some", colours, *options, "transfer.interpolate=true").metrics
    assert some["alpha"] in (0.25, 0.5, 0.75, 1.0)
    assert some["val_loss"] <= plain["val_loss"]
