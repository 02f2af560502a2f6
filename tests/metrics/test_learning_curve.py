"""Test that a power law finds its parameters again."""

from __future__ import annotations

import numpy as np
import pytest

from tl_research.metrics.learning_curve import extrapolate, power_law


def test_a_power_law_is_found_again() -> None:
    sizes = np.array([5.0, 10, 20, 40, 80])
    law = 0.05 + 0.6 * np.array([*sizes, 160.0]) ** -0.7
    assert power_law(sizes, law[:-1], np.array([160.0]))[0] == pytest.approx(law[-1], abs=0.003)


@pytest.mark.slow
def test_the_interval_narrows_with_more_images() -> None:
    sizes, rng = np.array([5.0, 10, 20, 40]), np.random.default_rng(0)
    widths = []
    for count in (50, 1000):
        correct = (rng.random((count, 4)) > 0.5 * sizes**-0.5).astype(float)
        found = extrapolate(sizes, correct, np.array([140.0]))[0]
        assert found.low <= found.accuracy <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
