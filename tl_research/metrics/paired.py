"""Compare two classifiers on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_research.metrics.bootstrap import bootstrap, mean_of

RESAMPLES = 5000
LEVEL = 0.05


@dataclass(frozen=True)
class Retrained:
    """What the difference of two classifiers' accuracies would be on average if their settings were trained on other
    images of the same kind, and tested on others."""

    low: float
    high: float
    p_value: float
    """Probability of a difference at least as large if both settings were equally good, not corrected."""
    training_sd: float
    """Standard deviation of the difference by the chance of the training images."""


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
    retrained: Retrained | None = None
    """The same of their settings; None where the chance of the training images is not known."""

    @property
    def headline_p(self) -> float:
        """Give the p value of the settings where it is known, else of the two classifiers."""
        return self.retrained.p_value if self.retrained else self.p_value

    @property
    def num_needed(self) -> float | None:
        """Images that would show a difference of this size in 4 of 5 tests at the 5 % level (Connett et al. 1987); None
        for no difference, infinite where the chance of the training images alone could make it."""
        if not self.difference:
            return None
        apart, gap = (self.only_first + self.only_second) / self.num, self.difference
        if not self.retrained:
            return float(np.ceil((1.96 * np.sqrt(apart) + 0.84 * np.sqrt(max(apart - gap**2, 0.0))) ** 2 / gap**2))
        room = (gap / (1.96 + 0.84)) ** 2 - self.retrained.training_sd**2
        return float(np.ceil(max(apart - gap**2, 0.0) / room)) if room > 0 else np.inf


def compare_answers(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, halves: Sequence[np.ndarray] = ()
) -> Comparison:
    """Compare which images `(n,)` bool two classifiers answer correctly; `n` is at least 1.

    The test is McNemar's with the mid-p value (Fagerland et al. 2013), the interval a paired bootstrap. With `groups`
    `(n,)`, whose images are not independent, whole groups are resampled, and their signs are flipped for the test.

    With `halves` it also tells of the settings, see `Retrained`. Each item is `(2 h, n)`: which images classifiers
    answer correctly that learned from halves of the training images, two rows for each division in halves. Two items
    have chances of their own, which add up; of two classifiers that learned from the same images, whose halves are the
    same, give one item: the second's minus the first's.
    """
    difference = second.astype(float) - first.astype(float)
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    low, high = _interval(difference, only_first, only_second, groups)
    p = _mcnemar(only_first, only_second) if groups is None else _sign_flips(difference, groups)
    retrained = _retrained(difference, groups, halves, low, high, p) if halves else None
    return Comparison(len(first), only_first, only_second, float(difference.mean()), low, high, p, retrained)


def _retrained(
    difference: np.ndarray,
    groups: np.ndarray | None,
    halves: Sequence[np.ndarray],
    low: float,
    high: float,
    p_value: float,
) -> Retrained:
    """Add the variances of training to that of the images: a t test with the degrees of freedom of Welch (1947), never
    surer than the images alone are."""
    from scipy.stats import t

    units = len(difference) if groups is None else len(np.unique(groups))
    of_images = float(variance_of_mean(difference, groups))
    of_training = [training_variance(right, groups) for right in halves]
    parts = [(of_images, max(units - 1, 1)), *zip(of_training, (len(right) / 2 for right in halves), strict=True)]
    mean, variance = float(difference.mean()), sum(value for value, _ in parts)
    if variance:
        freedom = variance**2 / sum(value**2 / count for value, count in parts)
        reach = float(t.ppf(1 - LEVEL / 2, freedom)) * np.sqrt(variance)
        low, high = min(low, mean - reach), max(high, mean + reach)
        p_value = max(p_value, float(2 * t.sf(abs(mean) / np.sqrt(variance), freedom)))
    return Retrained(max(low, -1.0), min(high, 1.0), p_value, float(np.sqrt(sum(of_training))))


def training_variance(right: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Estimate the variance of an accuracy, or of a difference of two, by the chance of the training images, from what
    classifiers that learned from halves of these answer correctly, `(2 h, n)`.

    Two halves have no image in common, so the variance between them is that of training on other images, of half as
    many; with all of them it is half of that (the delete-d jackknife of Shao and Wu 1989, with d = n / 2). How far two
    would be apart on `n` images that each had drawn, without one being better on others, is taken off: the images'
    variance holds it already.
    """
    gap = (right[0::2].astype(float) - right[1::2]) / 2
    return max(float(np.mean(gap.mean(axis=1) ** 2 - variance_of_mean(gap, groups))), 0.0)


def is_gain(gain: np.ndarray, groups: np.ndarray | None = None) -> bool:
    """Return whether the mean of gains `(n,)` is above its standard error, by whole `groups` `(n,)` if given."""
    return bool(gain.mean() > np.sqrt(variance_of_mean(gain, groups)))


def variance_of_mean(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Estimate the variance of the mean over the last axis, whose values are independent or are so by groups."""
    deviations = values - values.mean(axis=-1, keepdims=True)
    if groups is not None:
        order = np.argsort(groups, kind="stable")
        deviations = np.add.reduceat(deviations[..., order], np.unique(groups[order], return_index=True)[1], axis=-1)
    variance: np.ndarray = (deviations**2).sum(axis=-1) / values.shape[-1] ** 2
    return variance


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979)."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def _interval(
    difference: np.ndarray, only_first: int, only_second: int, groups: np.ndarray | None
) -> tuple[float, float]:
    """Bootstrap the mean difference; of single images only how many of each kind are drawn counts."""
    num = len(difference)
    if not only_first + only_second:  # resampling zeros gives zeros; see Hanley and Lippman-Hand (1983)
        most = min(3 / (num if groups is None else len(np.unique(groups))), 1.0)
        return -most, most
    if groups is not None:
        return bootstrap({"mean": mean_of(difference)}, num, groups, RESAMPLES)["mean"]
    shares = np.array([only_first, only_second, num - only_first - only_second]) / num
    drawn = np.random.default_rng(0).multinomial(num, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / num, [0.025, 0.975])
    return float(low), float(high)


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
