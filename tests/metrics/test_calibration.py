"""Calibration: temperatures, reliability and prediction sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from sklearn.base import BaseEstimator, ClassifierMixin

from tl_research.metrics.calibration import (
    calibration_metrics,
    conformal_scores,
    conformal_threshold,
    fit_temperature,
    prediction_sets,
    reliability,
)
from tl_research.metrics.probabilities import softmax
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS


def draw(seed: int, num: int = 2000, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits, and labels with exactly the probabilities that these say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num, classes)) * 2
    return logits, np.array([rng.choice(classes, p=row) for row in softmax(logits)])


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_temperature_makes_logits_as_sure_as_they_are_right(factor: float) -> None:
    logits, labels = draw(0)
    temperature = fit_temperature(logits * factor, labels)
    assert temperature == pytest.approx(factor, rel=0.1)
    before, after = (calibration_metrics(softmax(logits * factor / t), labels) for t in (1, temperature))
    assert after["loss"] <= before["loss"]
    assert after["ece"] < 0.04
    assert (before["ece"] > 0.05) == (factor != 1)


@pytest.mark.parametrize(("factor", "least", "most"), [(3.0, 0.02, np.inf), (1.0, -0.005, 0.005)])
def test_calibrating_helps_where_needed_and_never_hurts_much(factor: float, least: float, most: float) -> None:
    (logits, labels), falls = draw(0, 1000), []
    for seed in range(20):
        known, new = np.split(np.random.default_rng(seed).permutation(1000), 2)
        temperature = fit_temperature(factor * logits[known], labels[known])
        before, after = (calibration_metrics(softmax(factor * logits[new] / t), labels[new]) for t in (1, temperature))
        falls.append(before["loss"] - after["loss"])
    assert least <= np.mean(falls) <= most


def test_few_correct_answers_do_not_make_a_classifier_certain() -> None:
    assert fit_temperature(np.array([[1.0, 0], [0, 1]]), np.array([0, 1])) > 0.3


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5))
def test_reliability_counts_every_image_once(seed: int, num: int, classes: int) -> None:
    logits, labels = draw(seed, num, classes)
    bins = reliability(softmax(logits), labels)
    assert sum(entry["num"] for entry in bins) == num
    assert all(entry["low"] <= entry["confidence"] <= entry["high"] + 1e-9 for entry in bins)


def test_coverage_of_sets_follows_the_beta_distribution() -> None:
    """Over draws of n scores it is Beta(n + 1 - l, l), l = floor((n + 1) alpha) (Vovk 2012, arXiv 1209.2673)."""
    rng, num, coverage = np.random.default_rng(0), 60, 0.9
    left_out = int((num + 1) * (1 - coverage) + 1e-9)
    thresholds = [conformal_threshold(rng.random(num), coverage) for _ in range(1000)]  # uniform: the coverage itself
    assert kstest(thresholds, beta(num + 1 - left_out, left_out).cdf).pvalue > 0.01
    assert conformal_threshold(rng.random(8), coverage) == np.inf


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_prediction_sets_are_never_empty_and_grow(seed: int, threshold: float) -> None:
    probabilities = softmax(draw(seed, 9)[0])
    small, large = prediction_sets(probabilities, threshold), prediction_sets(probabilities, threshold + 0.1)
    assert small.any(axis=1).all()
    assert (large >= small).all()
    assert prediction_sets(probabilities, np.inf).all()


def test_scores_of_folds_cover_with_the_head_of_all_images() -> None:
    """As runs do: scores from out-of-fold answers, sets from the head that was then solved on all images."""
    rng, covered = np.random.default_rng(0), []
    coverages = np.array([0.8, 0.9, 0.95])
    for _ in range(12):
        labels = np.resize(np.arange(3), 60 + 600)
        features = rng.normal(size=(len(labels), 8)) + 1.2 * np.eye(3, 8)[labels]
        solution = solve(features[:60], labels[:60], LBFGS(), seed=0)
        assert solution.out_of_fold is not None
        scores = conformal_scores(softmax(solution.out_of_fold[0]), solution.out_of_fold[1])
        probabilities = softmax(solution.logits(features[60:]))
        sets = [prediction_sets(probabilities, conformal_threshold(scores, coverage)) for coverage in coverages]
        covered.append([each[np.arange(600), labels[60:]].mean() for each in sets])
    assert (np.mean(covered, axis=0) > 1 - 2 * (1 - coverages)).all()
    assert np.mean(covered, axis=0) == pytest.approx(coverages, abs=0.03)


class Prepared(ClassifierMixin, BaseEstimator):
    """A classifier for MAPIE whose "features" are numbers of images, with the answers `(n, k)` to each."""

    def __init__(self, answers: np.ndarray):
        self.answers = answers

    def fit(self, x: np.ndarray, y: np.ndarray) -> Prepared:
        self.classes_ = np.arange(self.answers.shape[1])
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self.answers[x[:, 0]]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.predict_proba(x).argmax(axis=1)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_mapie_makes_the_same_sets(coverage: float) -> None:
    mapie = pytest.importorskip("mapie.classification", reason="needs tl_research[test]")
    logits, labels = draw(0, 200)
    answers = softmax(logits)
    known, new = np.arange(100)[:, None], np.arange(100, 200)[:, None]
    split = mapie.SplitConformalClassifier(Prepared(answers).fit(known, labels), coverage, "lac", prefit=True)
    split.conformalize(known, labels[:100])
    threshold = conformal_threshold(conformal_scores(answers[:100], labels[:100]), coverage)
    assert (same_sets(split.predict_set(new)[1], prediction_sets(answers[100:], threshold))).all()


def same_sets(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Compare sets, but for the most probable class, which is always in ours."""
    differ = theirs[:, :, 0] != ours
    return ~differ | (ours & (ours.sum(axis=1) == 1)[:, None])
