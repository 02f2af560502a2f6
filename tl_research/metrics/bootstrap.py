"""Bootstrap intervals of metrics: images, or whole groups of them, are drawn with replacement.

All draws of a metric are computed at once; scikit-learn's functions, called for each, would take a thousand times as
long (a test holds both side by side).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tl_research.metrics.probabilities import softmax

DRAWS = 1000
FEWEST_DRAWS = 200
MOST_NUMBERS = 2e8
"""Draws x images x classes; of more, there are fewer draws."""
PART = 50
ENDS = ("low", "high")

Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each image was drawn, `(draws, n)` -> the metric of each draw, `(draws,)`, NaN where it has none."""


def bootstrap_intervals(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, float]:
    """Return the 95 % intervals `loss_low`, `loss_high`, and so for `macro_f1`, `balanced_accuracy`, `auroc` and
    `auprc`, of logits `(n, k)`.

    Where no image or pair is wrong, every draw is 1 and has no width. Then the low end is `0.05 ** (1 / m)`, about
    1 - 3 / m, of the `m` images (or groups) of the smallest class: were the metric lower, such a result would come in
    less than 5 % of all samples (the rule of three: Hanley and Lippman-Hand, "If nothing goes wrong, is everything all
    right?", 1983; `m` pairs of different images are independent, so that it holds for areas, too). For 0 likewise.
    """
    n, k = logits.shape
    draws = int(np.clip(MOST_NUMBERS / (n * k), FEWEST_DRAWS, DRAWS))
    probabilities = softmax(logits)
    statistics = {
        "loss": mean_of(_losses(logits, labels)),
        "macro_f1": _macro_f1(probabilities.argmax(axis=1), labels, k),
        "balanced_accuracy": _balanced_accuracy(logits.argmax(axis=1), labels),
    }
    if len(np.unique(labels)) > 1:
        statistics |= {"auroc": _areas(probabilities, labels, _auroc), "auprc": _areas(probabilities, labels, _auprc)}
    intervals = bootstrap(statistics, n, groups, draws, seed)
    bound = 0.05 ** (1 / _fewest(labels, np.arange(n) if groups is None else groups))
    for name, ends in intervals.items():
        if name != "loss" and ends in ((1.0, 1.0), (0.0, 0.0)):
            intervals[name] = (bound, 1.0) if ends[0] else (0.0, 1 - bound)
    return {f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(ENDS, ends, strict=True)}


def _fewest(labels: np.ndarray, groups: np.ndarray) -> int:
    """Count the groups of the class, or of its rest, that has the fewest."""
    parts = [labels == label for label in np.unique(labels)]
    return min(len(np.unique(groups[part])) for own in parts for part in (own, ~own) if part.any())


def bootstrap(
    statistics: Mapping[str, Statistic], n: int, groups: np.ndarray | None, draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each statistic of `n` images, over images or over `groups` `(n,)`."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for times in _drawn(n, groups, draws, np.random.default_rng(seed)):
        for name, statistic in statistics.items():
            found[name].append(statistic(times))
    ends = {name: np.nanquantile(np.concatenate(parts), [0.025, 0.975]) for name, parts in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def mean_of(values: np.ndarray) -> Statistic:
    """Make the statistic that is the mean of `values` `(n,)`."""
    return lambda times: (times @ values) / times.sum(axis=1)


def _drawn(n: int, groups: np.ndarray | None, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Draw as often as there are images or groups; yield how often each image was drawn, in parts `(PART, n)`."""
    number = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(number.max()) + 1
    for start in range(0, draws, PART):
        times = rng.multinomial(units, np.full(units, 1 / units), min(PART, draws - start))
        yield times[:, number].astype(np.float32)


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax

    return -log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels]


def _macro_f1(predicted: np.ndarray, labels: np.ndarray, k: int) -> Statistic:
    said, true = np.eye(k)[predicted], np.eye(k)[labels]

    def statistic(times: np.ndarray) -> np.ndarray:
        both, either = times @ (said * true), times @ said + times @ true
        return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)[:, np.unique(labels)].mean(axis=1)

    return statistic


def _balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> Statistic:
    classes = [labels == label for label in np.unique(labels)]
    right = predicted == labels

    def statistic(times: np.ndarray) -> np.ndarray:
        recalls = [_divide(times @ (own & right), times @ own) for own in classes]
        return np.nanmean(recalls, axis=0)  # of the classes that were drawn

    return statistic


Area = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""How often images of a class and of the rest were drawn at each score, from the lowest, `(draws, scores)` ->
`(draws,)`."""


def _areas(probabilities: np.ndarray, labels: np.ndarray, area: Area) -> Statistic:
    classes = [(np.unique(probabilities[:, c], return_inverse=True)[1], labels == c) for c in np.unique(labels)]

    def statistic(times: np.ndarray) -> np.ndarray:
        areas = []
        for rank, own in classes:
            order = np.argsort(rank, kind="stable")
            starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
            of_class = np.add.reduceat(np.where(own, times, 0)[:, order], starts, axis=1)
            of_rest = np.add.reduceat(np.where(own, 0, times)[:, order], starts, axis=1)
            areas.append(area(of_class, of_rest))
        return np.array(areas).mean(axis=0)  # NaN where a class was not drawn

    return statistic


def _auroc(of_class: np.ndarray, of_rest: np.ndarray) -> np.ndarray:
    below = np.cumsum(of_rest, axis=1) - of_rest / 2  # equal scores count half
    return _divide((of_class * below).sum(axis=1), of_class.sum(axis=1) * of_rest.sum(axis=1))


def _auprc(of_class: np.ndarray, of_rest: np.ndarray) -> np.ndarray:
    found, wrong = (np.cumsum(times[:, ::-1], axis=1) for times in (of_class, of_rest))  # from the highest score
    precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found > 0)
    return _divide((of_class[:, ::-1] * precision).sum(axis=1), found[:, -1])


def _divide(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.divide(one, other, out=np.full(len(one), np.nan), where=other > 0)
