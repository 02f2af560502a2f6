"""Comparisons of two classifiers on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tl_research.metrics.bootstrap import bootstrap, mean_of
from tl_research.metrics.paired import RESAMPLES, compare_answers, holm


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1, p * len(p_values)) or q == 1 for p, q in zip(p_values, corrected, strict=True))
    assert min(corrected) == pytest.approx(min(min(p_values) * len(p_values), 1))
    assert np.all(np.diff(np.asarray(corrected)[np.argsort(p_values)]) >= 0)
