"""Compare two classifiers on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_research.metrics.bootstrap import bootstrap, mean_of

RESAMPLES = 5000
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """What the same `num` images say of two classifiers; differences are second minus first."""

    num: int
    only_first: int
    """Images that the first alone answers correctly."""
    only_second: int
    difference: float
    """Difference of the accuracies, from -1 to 1, with its 95 % interval."""
    low: float
    high: float
    p_value: float
    """Probability of a difference at least as large if both were equally good, not corrected."""

    @property
    def num_needed(self) -> int | None:
        """Images that would show a difference of this size in 4 of 5 tests at the 5 % level (Connett et al. 1987); None
        for no difference."""
        if not self.difference:
            return None
        apart, gap = (self.only_first + self.only_second) / self.num, self.difference
        return int(np.ceil((1.96 * np.sqrt(apart) + 0.84 * np.sqrt(max(apart - gap**2, 0.0))) ** 2 / gap**2))


def compare_answers(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None) -> Comparison:
    """Compare which images `(n,)` bool two classifiers answer correctly; `n` is at least 1.

    The test is McNemar's with the mid-p value (Fagerland et al. 2013), the interval a paired bootstrap. With `groups`
    `(n,)`, whose images are not independent, whole groups are resampled, and their signs are flipped for the test.
    """
    difference = second.astype(float) - first.astype(float)
    low, high = bootstrap({"mean": mean_of(difference)}, len(difference), groups, RESAMPLES)["mean"]
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if not only_first + only_second:  # resampling zeros gives zeros; see Hanley and Lippman-Hand (1983)
        units = len(difference) if groups is None else len(np.unique(groups))
        low, high = -min(3 / units, 1.0), min(3 / units, 1.0)
    p = _mcnemar(only_first, only_second) if groups is None else _sign_flips(difference, groups)
    return Comparison(len(first), only_first, only_second, float(difference.mean()), low, high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979)."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def _mcnemar(only_first: int, only_second: int) -> float:
    from scipy.stats import binom, binomtest

    apart = only_first + only_second
    if not apart:
        return 1.0
    return float(binomtest(only_first, apart).pvalue - binom.pmf(only_first, apart, 0.5))


def _sign_flips(difference: np.ndarray, groups: np.ndarray) -> float:
    from scipy.stats import permutation_test

    sums = np.bincount(np.unique(groups, return_inverse=True)[1], difference)
    if not sums.any():
        return 1.0
    flipped = permutation_test((sums[sums != 0],), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=0)
    return float(flipped.pvalue)
