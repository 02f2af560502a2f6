"""Calibrate a trained classifier: a temperature, and scores for prediction sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl_research.metrics.calibration import (
    calibration_metrics,
    conformal_scores,
    conformal_threshold,
    fit_temperature,
    prediction_sets,
    reliability,
)
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.training.classifier_state import ClassifierState

COVERAGES = (0.8, 0.9, 0.95)
MOST_SCORES = 2000
"""Scores to write; of more, evenly spaced ones of the sorted are kept."""


def calibrate_run(run: Run, state: ClassifierState, val: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Write `calibration.json` and return the metrics of the calibrated classifier on test.

    The temperature comes from out-of-fold logits where the head was solved, for which no image is held out; otherwise
    from the validation logits `val` `(n, k)`, which are optimistic where they also chose the epoch.
    """
    data = state.data
    logits, labels = state.out_of_fold or (val, data.labels[data.indices("val")])
    if not len(labels):
        return {}
    temperature = fit_temperature(logits, labels)
    scores = np.sort(conformal_scores(softmax(logits / temperature), labels))
    content: dict[str, Any] = {
        "temperature": temperature,
        "fitted_on": "validation" if state.out_of_fold is None else "out-of-fold",
        "optimistic": state.chosen_by_val or (state.out_of_fold is None and state.held_out is None),
        "num": len(labels),
        "scores": thinned(scores).tolist(),
    }
    metrics: dict[str, float] = {}
    if len(test):
        true = data.labels[data.indices("test")]
        plain, calibrated = softmax(test), softmax(test / temperature)
        before, after = calibration_metrics(plain, true), calibration_metrics(calibrated, true)
        metrics = {
            "test_loss_calibrated": after["loss"],
            "test_ece": before["ece"],
            "test_ece_calibrated": after["ece"],
            "test_brier": before["brier"],
        }
        content["reliability"] = {"plain": reliability(plain, true), "calibrated": reliability(calibrated, true)}
        content["coverage"] = [_covered(calibrated, true, scores, coverage) for coverage in COVERAGES]
    run.write_json("calibration.json", content)
    return metrics


def _covered(probabilities: np.ndarray, labels: np.ndarray, scores: np.ndarray, coverage: float) -> dict[str, float]:
    sets = prediction_sets(probabilities, conformal_threshold(scores, coverage))
    covered = sets[np.arange(len(labels)), labels]
    return {"asked": coverage, "covered": float(covered.mean()), "mean_size": float(sets.sum(axis=1).mean())}


def thinned(scores: np.ndarray) -> np.ndarray:
    """Keep at most `MOST_SCORES` of sorted scores, each the largest of its part: sets grow, never shrink."""
    if len(scores) <= MOST_SCORES:
        return scores
    return scores[np.linspace(0, len(scores) - 1, MOST_SCORES).round().astype(int)]
