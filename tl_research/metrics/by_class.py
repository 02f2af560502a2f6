"""Measure each class on its own: precision, recall, F1, and the curves of one class against the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl_research.metrics.intervals import wilson

POINTS = 101
"""Points of a curve, at equal distances along its horizontal axis."""


def scores_by_class(labels: np.ndarray, predicted: np.ndarray, k: int) -> list[dict[str, Any]]:
    """Compute for each of `k` classes `count`, `precision`, `recall` with its 95 % Wilson interval `recall_low` to
    `recall_high`, and `f1`; None where no image is (or is taken to be) of the class."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=np.arange(k), zero_division=np.nan)
    scores = []
    for precision, recall, f1, count in zip(*(column.tolist() for column in columns), strict=True):
        low, high = wilson(recall, count) if count else (None, None)
        numbers = {"precision": precision, "recall": recall, "recall_low": low, "recall_high": high, "f1": f1}
        scores.append({"count": count} | {key: None if value != value else value for key, value in numbers.items()})
    return scores


def curves_by_class(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, dict[int | str, dict[str, Any]]]:
    """Draw the curves of one class against the rest, by class number and as `macro`, the mean over the classes.

    `roc` is the true over the false positive rate with its `area`; `precision_recall` is precision over recall with the
    average precision as its `area`. Both have `POINTS` values `y`, over equal steps from 0 to 1. Only classes that some
    but not all images have are measured; empty without one.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    grid = np.linspace(0, 1, POINTS)
    roc: dict[int | str, dict[str, Any]] = {}
    pr: dict[int | str, dict[str, Any]] = {}
    for c in range(probabilities.shape[1]):
        own, scores = labels == c, probabilities[:, c]
        if 0 < own.sum() < len(own):
            false, true, _ = roc_curve(own, scores)
            precision, recall, _ = precision_recall_curve(own, scores)
            heights = np.interp(grid + 1e-9, false, true)  # where the curve is vertical, its upper end
            roc[c] = {"y": heights, "area": float(roc_auc_score(own, scores))}
            steps = precision[::-1][np.searchsorted(recall[::-1], grid - 1e-9)]
            pr[c] = {"y": steps, "area": float(average_precision_score(own, scores))}
    for curves in (roc, pr):
        if curves:
            mean = {key: np.mean([curve[key] for curve in curves.values()], axis=0) for key in ("y", "area")}
            curves["macro"] = {"y": mean["y"], "area": float(mean["area"])}
    return {"roc": roc, "precision_recall": pr}
