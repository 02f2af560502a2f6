"""Comparisons of two classifiers on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tl_research.metrics.bootstrap import bootstrap, mean_of
from tl_research.metrics.paired import RESAMPLES, compare_answers, holm, training_variance


def answers(both: int, only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False], [both, only_first, only_second])
    return first, np.repeat([True, False, True], [both, only_first, only_second])


def test_mcnemar_counts_only_images_answered_differently() -> None:
    small, large = (compare_answers(*answers(both, 2, 10)) for both in (10, 1000))
    assert (small.only_first, small.only_second) == (2, 10)
    assert small.p_value == large.p_value
    assert binomtest(2, 12).pvalue / 2 < small.p_value < binomtest(2, 12).pvalue
    assert small.difference == pytest.approx(8 / 22)
    assert small.low < small.difference < small.high
    assert compare_answers(*answers(20, 5, 5)).num_needed is None


def test_equal_answers_do_not_prove_equal_classifiers() -> None:
    same = compare_answers(*answers(30, 0, 0))
    assert (same.p_value, same.difference, same.low, same.high) == (1, 0, -0.1, 0.1)


def test_images_of_one_group_count_once() -> None:
    first, second = answers(0, 0, 40)
    alone = compare_answers(first, second)
    grouped = compare_answers(first, second, np.repeat(["a", "b"], 20))
    assert alone.p_value < 0.001
    assert grouped.p_value == 0.5
    values = np.random.default_rng(0).normal(size=10).repeat(10)
    every = {"mean": mean_of(values)}
    narrow, wide = (bootstrap(every, 100, g, RESAMPLES)["mean"] for g in (None, np.arange(10).repeat(10)))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_equal_classifiers_rarely_seem_different() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((400, 2, 100)) < rng.random((400, 1, 100))  # the same chance for both, image by image
    assert np.mean([compare_answers(*pair).p_value < 0.05 for pair in right]) < 0.08


LEARNED, TESTED, SPREAD = 40, 200, 0.3
"""Training images, of which each moves the accuracy by its share of a normal number of this spread; test images."""


def trained(rng: np.random.Generator, accuracy: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Draw which images a classifier answers correctly, and its like from halves of its training images."""
    pulls = rng.normal(accuracy, SPREAD, LEARNED)
    halves = [part.mean() for _ in range(10) for part in np.split(rng.permutation(pulls), 2)]
    return rng.random(TESTED) < pulls.mean(), rng.random((20, TESTED)) < np.array(halves)[:, None]


def test_halves_tell_the_variance_of_training() -> None:
    rng = np.random.default_rng(0)
    found = np.mean([training_variance(trained(rng)[1]) for _ in range(200)])
    assert found == pytest.approx(SPREAD**2 / LEARNED, rel=0.15)
    grouped = [training_variance(trained(rng)[1].repeat(3, axis=1), np.arange(TESTED).repeat(3)) for _ in range(200)]
    assert np.mean(grouped) == pytest.approx(SPREAD**2 / LEARNED, rel=0.15)


def test_equal_settings_rarely_seem_different() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        (first, its), (second, others) = trained(rng), trained(rng)
        compared = compare_answers(first, second, halves=[its, others])
        assert compared.retrained is not None
        assert compared.retrained.low <= compared.low <= compared.high <= compared.retrained.high
        assert compared.retrained.p_value >= compared.p_value
        found.append([compared.headline_p < 0.05, compared.p_value < 0.05])
    settings, models = np.mean(found, axis=0)
    assert settings <= 0.08 < 0.2 < models


def test_the_same_training_images_make_a_difference_surer() -> None:
    rng = np.random.default_rng(0)
    first, halves = trained(rng, 0.7)
    second, better = (right | (rng.random(right.shape) < 0.25) for right in (first, halves))
    apart = compare_answers(first, second, halves=[halves, better])
    together = compare_answers(first, second, halves=[better.astype(float) - halves])
    assert together.headline_p < 0.05 < apart.headline_p
    assert together.num_needed is not None
    assert together.num_needed < TESTED < (apart.num_needed or 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1, p * len(p_values)) or q == 1 for p, q in zip(p_values, corrected, strict=True))
    assert min(corrected) == pytest.approx(min(min(p_values) * len(p_values), 1))
    assert np.all(np.diff(np.asarray(corrected)[np.argsort(p_values)]) >= 0)


def test_settings_are_never_surer_than_the_images() -> None:
    first, second = np.arange(60) < 1, (np.arange(60) >= 1) & (np.arange(60) < 7)
    compared = compare_answers(first, second, halves=[np.zeros((20, 60))])
    assert compared.retrained is not None
    assert compared.retrained.p_value == compared.p_value > 0.05
