"""Calibration of whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_noise
from tests.experiment.test_experiment import run
from tl_research.evaluation.calibration import MOST_SCORES, thinned

TRAINED = ["optimizer=adam", "transfer.head.epochs=2", "callbacks=none"]


@pytest.mark.parametrize(
    ("options", "fitted_on", "optimistic", "num"),
    [
        (["callbacks=none"], "out-of-fold", False, 32),
        (["callbacks=none", "optimizer.l2=0.1"], "validation", False, 6),
        (["callbacks=none", "head=knn"], "validation", False, 6),
        (TRAINED, "validation", True, 6),
    ],
    ids=["solved", "given l2", "knn", "epochs"],
)
def test_temperatures_come_from_images_not_learned_from(
    tmp_path: Path, options: list[str], fitted_on: str, optimistic: bool, num: int
) -> None:
    noise = draw_noise(tmp_path / "noise", ("train", "test"), 16)
    done = run(tmp_path / "run", noise, *options)
    found = done.calibration
    assert json.loads((tmp_path / "run" / "calibration.json").read_text()) == found
    assert (found["fitted_on"], found["optimistic"], found["num"]) == (fitted_on, optimistic, num)
    assert len(found["scores"]) == num
    assert done.metrics["test_loss_calibrated"] < max(done.metrics["test_loss"], 0.8)
    asked = [entry["asked"] for entry in found["coverage"]]
    covered = [entry["covered"] for entry in found["coverage"]]
    assert asked == sorted(asked)
    assert covered == sorted(covered)
    assert sum(entry["num"] for entry in found["reliability"]["plain"]) == done.metrics["num_test"]


def test_thinned_scores_keep_the_largest() -> None:
    scores = np.sort(np.random.default_rng(0).random(3 * MOST_SCORES))
    kept = thinned(scores)
    assert len(kept) == MOST_SCORES
    assert kept[-1] == scores[-1]
    assert np.abs(np.quantile(kept, 0.9) - np.quantile(scores, 0.9)) < 1e-3
