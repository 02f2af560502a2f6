"""95 % intervals: of a share, and of a mean over repetitions measured on few images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Compute the interval of a share of `count` images (Wilson, "Probable inference, the law of succession, and
    statistical inference", 1927). Also of a mean share, which may be no multiple of 1 / `count`."""
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def half_width(values: Sequence[float]) -> float:
    """Compute half of the interval of a mean of two or more values (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def mean_interval(values: Sequence[float], count: int | None, highest: float = 1.0) -> tuple[float, float] | None:
    """Compute the interval of the mean of two or more values between 0 and `highest`, for other repetitions and other
    images: each side is the root of the sum of squares of Student's over the values and, if they are shares of `count`
    images, of Wilson's (MOVER: Zou and Donner, "Construction of confidence limits about effect measures", 2008).

    None for equal values without a count: nothing is known of their spread. The bootstrap over runs and images has no
    width either where every answer is right, and is too narrow for the two to five runs that are usual.
    """
    mean, half = float(np.mean(values)), half_width(values)
    if count is None and half == 0:
        return None
    low, high = wilson(mean, count) if count else (mean, mean)
    return max(mean - math.hypot(half, mean - low), 0.0), min(mean + math.hypot(half, high - mean), highest)
