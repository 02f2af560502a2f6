"""Extrapolate accuracy to more images: a power law, with an interval."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

RESAMPLES = 200


@dataclass(frozen=True)
class Extrapolation:
    """The accuracy that a power law expects with `per_class` images of each class, and its 95 % interval."""

    per_class: float
    accuracy: float
    low: float
    high: float


def extrapolate(sizes: np.ndarray, correct: np.ndarray, targets: np.ndarray, seed: int = 0) -> list[Extrapolation]:
    """Extrapolate a learning curve: error = floor + scale * size^-power (Hestness et al. 2017, arXiv 1712.00409).

    Args:
        sizes: images of each class that heads learned from, ascending, `(s,)`; at least 3.
        correct: how often each image was answered correctly, from 0 to 1, by heads of each size that did not learn from
            it, `(n, s)`.
        targets: sizes to extrapolate to.
        seed: of the bootstrap over images.
    """
    rng = np.random.default_rng(seed)
    count = len(correct)
    expected = power_law(sizes, 1 - correct.mean(axis=0), targets)
    drawn = np.array(
        [power_law(sizes, 1 - correct[rng.integers(count, size=count)].mean(axis=0), targets) for _ in range(RESAMPLES)]
    )
    # No curve of a finite number of images is smoother than one image, and a resampled one repeats its own luck.
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [
        Extrapolation(float(size), 1 - float(error), max(1 - float(top), 0.0), min(1 - float(bottom), 1.0))
        for size, error, bottom, top in zip(targets, expected, low - 0.5 / count, high + 0.5 / count, strict=True)
    ]


def power_law(sizes: np.ndarray, errors: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fit error = floor + scale * size^-power by least squares; return the errors at `targets`, from 0 to 1."""
    from scipy.optimize import curve_fit

    def law(size: np.ndarray, floor: float, scale: float, power: float) -> np.ndarray:
        return floor + scale * (size / sizes[0]) ** -power

    start = (0.5 * errors[-1], max(errors[0] - 0.5 * errors[-1], 1e-3), 0.5)
    with warnings.catch_warnings(action="ignore"):  # that the covariance of the parameters is unknown
        found, _ = curve_fit(law, sizes, errors, start, np.sqrt(1 / sizes), bounds=((0, 0, 0.05), (1, 2, 2)))
    return np.clip(law(np.asarray(targets, float), *found), 0.0, 1.0)
