"""Scores and curves of each class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tl_research.metrics.by_class import curves_by_class, scores_by_class
from tl_research.metrics.intervals import wilson


def test_scores_of_each_class_have_an_interval() -> None:
    first, second, absent, untold = scores_by_class(np.array([0, 0, 0, 1, 3]), np.array([0, 0, 1, 1, 1]), 4)
    assert (first["count"], first["precision"], first["recall"], first["f1"]) == (3, 1.0, 2 / 3, 0.8)
    assert (first["recall_low"], first["recall_high"]) == wilson(2 / 3, 3)
    assert 0 < first["recall_low"] < 2 / 3 < first["recall_high"] < 1
    assert (second["precision"], second["recall"]) == (1 / 3, 1.0)
    assert (absent["count"], absent["recall"], absent["recall_low"]) == (0, None, None)
    assert (untold["precision"], untold["recall"]) == (None, 0.0)


def test_curves_enclose_their_areas() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    scores = rng.random((500, 4)) + 0.5 * np.eye(4)[labels]
    curves = curves_by_class(scores, labels)
    assert list(curves["roc"]) == list(curves["precision_recall"]) == [0, 1, 2, "macro"], "class 3 has no images"
    for c in range(3):
        roc, pr = curves["roc"][c], curves["precision_recall"][c]
        assert roc["area"] == roc_auc_score(labels == c, scores[:, c])
        assert pr["area"] == average_precision_score(labels == c, scores[:, c])
        for curve in (roc, pr):
            assert np.trapezoid(curve["y"], dx=0.01) == pytest.approx(curve["area"], abs=0.02)
        assert np.all(np.diff(roc["y"]) >= 0)
    assert curves["roc"]["macro"]["area"] == pytest.approx(np.mean([curves["roc"][c]["area"] for c in range(3)]))
    assert curves_by_class(scores, np.zeros(500, int)) == {"roc": {}, "precision_recall": {}}
