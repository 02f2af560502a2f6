"""The candidates among which `backbone=auto` and `head=auto` choose, and the rule by which they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from tl_research.metrics.bootstrap import bootstrap, mean_of
from tl_research.models.backbone import Backbone
from tl_research.training.logistic_regression import STRENGTHS, Choice

DRAWS = 5000
LEAST = 0.001
"""The least difference of log losses that matters: where all answers are right, candidates still differ a little."""
MARGIN = 0.005
"""The largest difference of log losses for which a cheaper candidate counts as equal."""


@dataclass(frozen=True)
class Network:
    """A network that was looked at: its recipe and configuration, and the Gram matrix of its features, `(n, n)`."""

    recipe: Backbone
    config: dict[str, Any]
    gram: np.ndarray
    parameters: int
    operations: int
    """Multiply-accumulates for one image."""
    seconds: float
    computed: int
    hit: int


@dataclass(frozen=True)
class Candidate:
    """A backbone or a head, and its cross-validation. `seconds` are those of its features, where they were computed for
    it, and its head; by `order`, then by `operations`, multiply-accumulates for one image, candidates are cheap or
    dear."""

    name: str
    validated: Choice
    seconds: float
    parameters: int
    operations: int
    eligible: bool = True
    note: str = ""
    order: int = 0

    @property
    def loss(self) -> float:
        """The cross-validated log loss; infinite where no image could be held out."""
        return self.validated.log_loss


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True)
class CandidateRow:
    """A candidate as the table and `selection.json` show it. `behind` is the cross-validated log loss above that of the
    best, with its 95 % interval, paired over images."""

    name: str
    loss: float | None
    low: float | None
    high: float | None
    accuracy: float | None
    behind: float
    behind_low: float
    behind_high: float
    seconds: float
    parameters: int
    operations: int
    note: str


def judge(
    candidates: Sequence[C], groups: np.ndarray | None, preferred: C | None = None
) -> tuple[C, list[CandidateRow], str]:
    """Choose the cheapest candidate that the best is not better than beyond noise: the 95 % interval of the difference
    of their losses on the same images, widened for the number of candidates (Bonferroni), begins below `LEAST`.

    A `preferred` one that is among these is chosen instead, unless a cheaper one is surely as good: the interval of
    their difference lies within `MARGIN` of 0 (a test of equivalence). Where few images judge, many candidates are not
    seen to be worse than the best, and the lucky ones among them are not as good (`python -m benchmarks rules`).
    """
    eligible = sorted((each for each in candidates if each.eligible), key=lambda each: (each.order, each.operations))
    best = min(eligible, key=lambda each: each.loss)
    behind = _behind(candidates, best, groups)
    widened = {name: _widened(found, len(eligible) - 1) for name, found in behind.items()}
    as_good = [each for each in eligible if each is best or widened[each.name][1] <= LEAST]
    preferred = preferred if preferred in as_good else None
    chosen = as_good[0]
    if preferred:
        from_preferred = _behind(eligible, preferred, groups)
        chosen = next(each for each in eligible if each is preferred or _is_equal(from_preferred[each.name]))
    losses = _means({each.name: each.validated.image_losses[1] for each in candidates}, best, groups)
    ranked = sorted(candidates, key=lambda each: each.loss)
    rows = [_row(each, losses.get(each.name), behind[each.name]) for each in ranked]
    rows = [
        replace(row, note=", ".join(filter(None, ["chosen", row.note]))) if row.name == chosen.name else row
        for row in rows
    ]
    if not math.isfinite(best.loss):
        return chosen, rows, f"chosen: {chosen.name}, the first, for no image can be held out to compare by"
    if chosen is best:
        return chosen, rows, f"chosen: {chosen.name}, whose cross-validated log loss is the lowest"
    if chosen is preferred:
        return chosen, rows, f"chosen: {chosen.name}; nothing is better beyond noise, or cheaper and surely as good"
    if preferred:
        return chosen, rows, f"chosen: {chosen.name}, which is cheaper than {preferred.name} and surely as good"
    gap, low, high = widened[chosen.name]
    interval = f"{low:.3g} to {high:.3g}" + f", widened for {len(eligible)} candidates" * (len(eligible) > 2)
    why = f"{best.name} is better by {gap:.3g} only, and that is noise ({interval})"
    return chosen, rows, f"chosen: {chosen.name}, the cheapest of those that are as good; {why}"


def _widened(behind: tuple[float, float, float], comparisons: int) -> tuple[float, float, float]:
    """Widen a 95 % interval for the number of candidates that are compared with the best of them."""
    from scipy.stats import norm

    gap, low, high = behind
    factor = float(norm.ppf(1 - 0.025 / max(comparisons, 1)) / norm.ppf(0.975))
    return gap, gap - factor * (gap - low), gap + factor * (high - gap)


def _is_equal(behind: tuple[float, float, float]) -> bool:
    return behind[1] >= -MARGIN and behind[2] <= MARGIN


def _behind(
    candidates: Sequence[Candidate], best: Candidate, groups: np.ndarray | None
) -> dict[str, tuple[float, float, float]]:
    """Return the losses above that of the best and their intervals; all were cross-validated in the same folds."""
    lowest = best.validated.image_losses[1]
    differences = {each.name: each.validated.image_losses[1] - lowest for each in candidates}
    return _means(differences, best, groups) or {each.name: (0.0, 0.0, 0.0) for each in candidates}


def _means(
    values: Mapping[str, np.ndarray], one: Candidate, groups: np.ndarray | None
) -> dict[str, tuple[float, float, float]]:
    """Return means over the images that judged `one`, and all others, with their intervals, from the same draws; none
    where no image could be held out."""
    numbers = one.validated.image_losses[0]
    if not len(numbers):
        return {}
    chosen = None if groups is None else groups[numbers]
    ends = bootstrap({name: mean_of(each) for name, each in values.items()}, len(numbers), chosen, DRAWS)
    return {name: (float(each.mean()), *ends[name]) for name, each in values.items()}


def _row(
    candidate: Candidate, loss: tuple[float, float, float] | None, behind: tuple[float, float, float]
) -> CandidateRow:
    low, high = loss[1:] if loss else (None, None)
    return CandidateRow(
        candidate.name,
        candidate.loss if math.isfinite(candidate.loss) else None,
        low,
        high,
        candidate.validated.accuracy,
        *behind,
        round(candidate.seconds, 1),
        candidate.parameters,
        candidate.operations,
        candidate.note,
    )


def search_near(last: int, choose: Callable[[np.ndarray, int], Choice]) -> Choice:
    """Choose a penalty beside number `last` of `STRENGTHS`, that of another candidate: from a step stronger to weaker
    ones, and where the strongest tried is the best, among stronger ones, too. `choose` is given penalties and how many
    in a row may be worse, as `choose_l2`."""
    first = max(last - 1, 0)
    choice = choose(STRENGTHS[first:], 2 - bool(first))
    while first and choice.l2 == STRENGTHS[first]:
        end, first = first + 1, max(first - 2, 0)
        choice = choose(STRENGTHS[first:end], 3)
    return choice


def thinned_images(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Number the images that choose, in order: all, or a stratified sample of `most`."""
    if len(labels) <= most:
        return np.arange(len(labels))
    # Each image's place in its class, from 0 to 1, so that all classes are thinned alike.
    rank = np.empty(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(rank, kind="stable")[:most])
