"""Properties of schedules at every step of stages of any length."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_research.training.schedule import LAST, Plateau, ScheduleName, rate_factor

names = st.sampled_from(get_args(ScheduleName))
totals = st.integers(1, 500)
warmups = st.floats(0, 0.9)


@given(names, totals, warmups)
def test_the_factor_is_above_zero_and_at_most_one(name: ScheduleName, total: int, warmup: float) -> None:
    shares = [rate_factor(name, step, total, warmup) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)


@given(names, totals, warmups)
def test_the_factor_rises_once_and_then_falls(name: ScheduleName, total: int, warmup: float) -> None:
    shares = [rate_factor(name, step, total, warmup) for step in range(total)]
    top = shares.index(max(shares))
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)


@given(totals, warmups)
def test_a_warm_up_takes_its_share_of_the_steps(total: int, warmup: float) -> None:
    shares = [rate_factor("constant", step, total, warmup) for step in range(total)]
    assert sum(share < 1 for share in shares) == math.floor(warmup * total)
    assert shares[0] == 1 / (math.floor(warmup * total) + 1)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_final_factors(warmup: float) -> None:
    last = {name: rate_factor(name, 999, 1000, warmup) for name in get_args(ScheduleName)}
    assert last["constant"] == last["plateau"] == 1
    assert last["cosine"] < 1e-5
    assert last["exponential"] == pytest.approx(LAST, rel=0.01)
    assert last["one_cycle"] == pytest.approx(LAST, rel=0.01)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rate_factor("cosine", 50, 100) == pytest.approx(0.5)
    assert rate_factor("cosine", 60, 100, warmup=0.2) == pytest.approx(0.5)


def test_a_plateau_lowers_the_rate_after_three_epochs() -> None:
    plateau = Plateau()
    factors = []
    for loss in (1.0, 0.9, 0.95, 0.9, 0.91, 0.8, 0.8, 0.8, 0.8):
        plateau.update(loss)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3, pytest.approx(0.09)]


def test_nan_counts_as_no_better_loss() -> None:
    plateau = Plateau()
    for loss in (1.0, math.nan, math.nan, math.nan):
        plateau.update(loss)
    assert plateau.factor == 0.3
