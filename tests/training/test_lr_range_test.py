"""The learning-rate range test: average, suggestion on curves of every kind, and the files of the command."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_research import InputError
from tl_research.reports import figures
from tl_research.training.lr_range_test import FIRST, LAST, LEAST_STEPS, Curve, suggest

CHANCE = math.log(2)
positive = st.floats(1e-6, 1e3)


def curve(losses: list[float] | Callable[[float], float], steps: int = 100, chance: float = CHANCE) -> Curve:
    """Make the curve of these losses, or of a function of the rate."""
    made = Curve(steps, chance)
    for loss in map(losses, made.planned) if callable(losses) else losses:
        made.add(loss)
        if made.risen:
            break
    return made


# The average


@settings(deadline=None)
@given(st.lists(positive, min_size=1, max_size=60), st.integers(LEAST_STEPS, 500))
def test_the_average_weighs_later_losses_more(losses: list[float], steps: int) -> None:
    losses = losses[:steps]
    made = Curve(steps, chance=1e9)
    for loss in losses:
        made.add(loss)
    assert made.rates == made.planned[: len(losses)]
    for number, found in enumerate(made.smoothed, 1):
        weights = made.beta ** np.arange(number)[::-1]
        assert found == pytest.approx(np.average(losses[:number], weights=weights), rel=1e-9)
        assert min(losses) * (1 - 1e-9) <= found <= max(losses) * (1 + 1e-9)


@settings(deadline=None)
@given(positive, st.integers(LEAST_STEPS, 500))
def test_a_constant_loss_is_its_own_average_and_never_rises(loss: float, steps: int) -> None:
    made = curve(steps * [loss], steps)
    np.testing.assert_allclose(made.smoothed, loss)
    assert (len(made.rates), made.rates[0], made.rates[-1]) == (steps, FIRST, pytest.approx(LAST))
    assert suggest(made)[0] == pytest.approx(LAST / 10)
    assert "says little" in suggest(made)[1]


@pytest.mark.parametrize("last", [math.nan, math.inf, 1e6])
def test_a_huge_or_infinite_loss_ends_the_test(last: float) -> None:
    made = curve([*50 * [1.0], last, *49 * [1.0]])
    assert made.risen
    assert len(made.losses) == 50 + math.isfinite(last)
    assert np.isfinite(made.smoothed).all()


# The suggestion


@settings(deadline=None)
@given(st.lists(positive, min_size=14, max_size=100), st.booleans())
def test_a_suggestion_has_two_digits_and_an_upper_bound(losses: list[float], broken: bool) -> None:
    made = curve([*losses, math.nan] if broken else losses)
    rate, why = suggest(made)
    assert FIRST / 30 * 0.95 <= rate <= made.rates[-1] / 10 * 1.05
    assert rate == float(f"{rate:.1e}")
    assert why.startswith("the loss ")


@settings(deadline=None)
@given(st.lists(positive, min_size=14, max_size=100), st.integers(-8, 8))
def test_the_unit_of_the_loss_does_not_matter(losses: list[float], power: int) -> None:
    scaled = curve([loss * 2.0**power for loss in losses], chance=CHANCE * 2.0**power)
    assert suggest(scaled)[0] == suggest(curve(losses))[0]


@settings(max_examples=30, deadline=None)
@given(st.floats(-4.5, -1.5), st.floats(0.1, 5), st.sampled_from([50, 100, 300]), st.integers(0, 99))
def test_the_suggestion_is_where_the_loss_falls(middle: float, height: float, steps: int, seed: int) -> None:
    noise = np.random.default_rng(seed)

    def loss(rate: float) -> float:
        fallen = 1 / (1 + math.exp(-3 * (math.log10(rate) - middle)))
        exploded = (rate / 10 ** (middle + 2.2)) ** 4
        return height * (1 - 0.9 * fallen + exploded) * math.exp(noise.normal(0, 0.02))

    rate, why = suggest(curve(loss, steps))
    assert "half of the way down" in why
    assert abs(math.log10(rate) - middle) < 0.5


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 0), st.floats(-4, -2), st.sampled_from([50, 100, 300]), st.integers(0, 99))
def test_at_an_optimum_it_is_a_thirtieth_of_where_loss_rises(end: float, level: float, steps: int, seed: int) -> None:
    """Even if single hard images make peaks before."""
    noise = np.random.default_rng(seed)

    def loss(rate: float) -> float:
        peak = 0.1 if noise.random() < 0.03 else 0
        return 10**level * math.exp(noise.normal(0, 0.3)) + peak + 100 * (rate > 10**end)

    rate, why = suggest(curve(loss, steps))
    assert "hardly fell" in why
    assert -0.1 < math.log10(30 * rate) - end < 8 / (steps - 1) + 0.03  # two digits


@pytest.mark.parametrize(("level", "solved"), [(0.0, True), (1e-4, True), (0.05, False), (0.7, False)])
@pytest.mark.parametrize("rises", [True, False])
def test_a_solved_head_has_nothing_left_to_learn(level: float, solved: bool, rises: bool) -> None:
    _, why = suggest(curve(lambda rate: 5.0 if rises and rate > 0.1 else level))
    assert ("nothing left to learn" in why) == solved


@pytest.mark.parametrize("begin", [0.7, 0.9])
def test_a_return_to_chance_after_the_rise_is_ignored(begin: float) -> None:
    rate, why = suggest(curve(lambda rate: begin if rate < 1e-3 else 5.0 if rate < 1e-1 else CHANCE))
    assert rate == pytest.approx(1e-4, rel=0.3)
    assert "hardly fell" in why


def test_single_large_losses_at_the_beginning_are_ignored() -> None:
    made = curve([0.001, 2.0, 0.001, 0.001, 3.0, *95 * [0.001]])
    assert len(made.losses) == 100


@pytest.mark.parametrize("before", [0, 3, 13])
def test_an_immediately_infinite_loss_is_an_input_error(before: int) -> None:
    with pytest.raises(InputError, match=r"no number at a rate of .* already; add trainer.clip_norm=1"):
        suggest(curve([*before * [1.0], math.nan]))


def test_the_picture_of_any_curve_can_be_drawn() -> None:
    for made in (curve(100 * [0.0]), curve(100 * [1e-12]), curve([*20 * [0.7], 1e30]), curve([1.0, math.nan])):
        page = figures.learning_rates("stage head", made.rates, made.losses, made.smoothed, 1e-3)
        assert (page.dtype, page.shape[2]) == (np.uint8, 3)
