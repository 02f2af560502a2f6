"""The temperature: it undoes a known one, says nothing without images, and stays sober on a few right answers."""

from __future__ import annotations

import numpy as np
import pytest

from tl_research.metrics.calibration import LIMITS, fit_temperature
from tl_research.metrics.probabilities import softmax


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_few_images_say_little() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1
    right = np.eye(2)[[0, 1, 0]] * 4
    assert 0.5 < fit_temperature(right, np.array([0, 1, 0])) < 1
    assert LIMITS[0] < fit_temperature(right * 1e4, np.array([1, 0, 1])) <= LIMITS[1]
