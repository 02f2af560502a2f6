"""Rank labels by how doubtful they are: confident learning (Northcutt et al. 2021, arXiv 1911.00068)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelDoubt:
    """How doubtful an image's label is: `score` from 0 to 1, 0.5 where the `suggested` class is as probable. With
    `is_confident`, the suggested class is at least as probable as it usually is for images labelled so."""

    index: int
    suggested: int
    score: float
    is_confident: bool


def rank_labels(probabilities: np.ndarray, labels: np.ndarray) -> list[LabelDoubt]:
    """Rank images by doubt in their label, the most doubtful first.

    Args:
        probabilities: of heads that did not learn from the image, `(n, k)`; rows of NaN are left out.
        labels: class indices `(n,)`.
    """
    judged = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    p, given = probabilities[judged], labels[judged]
    rows = np.arange(len(judged))
    own = p[rows, given]
    usual = np.array([own[given == label].mean() if (given == label).any() else np.inf for label in range(p.shape[1])])
    others = p.copy()
    others[rows, given] = -1.0
    suggested = others.argmax(axis=1)
    likely = np.where(p >= usual, p, -1.0)
    confident = (likely.max(axis=1) > 0) & (likely.argmax(axis=1) != given)
    suggested = np.where(confident, likely.argmax(axis=1), suggested)
    scores = (1 + p[rows, suggested] - own) / 2
    order = np.lexsort((-scores, ~confident))
    return [
        LabelDoubt(int(judged[i]), int(suggested[i]), round(float(scores[i]), 4), bool(confident[i]))
        for i in order.tolist()
    ]
