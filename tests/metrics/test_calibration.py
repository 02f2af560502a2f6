"""Calibration: temperatures, reliability and prediction sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from tl_research.metrics.calibration import (
    calibration_metrics,
    conformal_threshold,
    fit_temperature,
    prediction_sets,
    reliability,
)
from tl_research.metrics.probabilities import softmax


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
