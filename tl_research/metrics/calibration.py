"""Calibrate probabilities by one temperature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from tl_research.metrics.probabilities import softmax

LIMITS = (0.05, 20.0)
PRIOR_DEVIATION = 1.0
"""Standard deviation of log T around 0, a priori. It weighs as much as a few images: where those are all answered
correctly the likelihood alone would make the temperature 0, and each answer certain."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the T for which `softmax(logits / T)` has the least log loss (Guo et al. 2017, arXiv 1706.04599), within
    `LIMITS`; the most probable one under a weak prior at 1. `logits` `(n, k)` are of images that the model has not
    learned from; 1.0 if there are none."""
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    own = (np.arange(len(labels)), labels)

    def cost(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))[own]
        return float(-np.log(np.maximum(probabilities, 1e-300)).sum() + (log_temperature / PRIOR_DEVIATION) ** 2 / 2)

    found = minimize_scalar(cost, bounds=tuple(np.log(LIMITS)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Calibration:
    """A run's `temperature`, fitted on `num_images` validation images. It is `optimistic` where these also chose the
    epoch: a model in closed form needs none for that."""

    temperature: float
    num_images: int
    optimistic: bool

    @classmethod
    def fit(cls, logits: np.ndarray, labels: np.ndarray, *, held_out: bool) -> Self:
        """Fit it on the logits `(n, k)` of validation images; `held_out` if they chose nothing."""
        return cls(round(fit_temperature(logits, labels), 6), len(labels), optimistic=not held_out)

    def as_dict(self) -> dict[str, Any]:
        """Give the content of `calibration.json`."""
        return asdict(self)
