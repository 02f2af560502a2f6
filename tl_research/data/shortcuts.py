"""Test whether facts beside the subject of a photograph predict its class: a network may learn these instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_research.data.image_facts import ImageFacts
from tl_research.data.near_duplicates import SIDE
from tl_research.metrics.paired import holm

FOLDS = 5
BINS = 8
INNER = slice(SIDE // 8, -SIDE // 8)
PERMUTATIONS = 999
ENOUGH = 20  # permutations as good as the truth, after which there is no more doubt (Besag and Clifford 1991)
SURE = 0.01
"""A fact is a shortcut if its p value, corrected for the number of facts, is smaller."""


@dataclass(frozen=True)
class Shortcut:
    """How well one fact predicts the class: cross-validated balanced accuracy, what chance gives, and the p value of a
    permutation test, corrected for the number of facts (Holm 1979)."""

    fact: str
    balanced_accuracy: float
    chance: float
    p_value: float

    @property
    def is_found(self) -> bool:
        """Tell whether the fact predicts the class beyond chance."""
        return self.p_value < SURE


def find_shortcuts(columns: Mapping[str, np.ndarray], labels: np.ndarray, seed: int = 0) -> list[Shortcut]:
    """Test each fact alone, the best predictor first.

    Args:
        columns: for each fact, small integers `(n, c)` (see `bins_of`), from which a naive Bayes classifier predicts; a
            0 says nothing.
        labels: class indices `(n,)`; classes of fewer than `FOLDS` images are left out.
        seed: of folds and permutations.
    """
    counts = np.bincount(labels)
    usable = np.isin(labels, np.flatnonzero(counts >= FOLDS))
    classes, labels = np.unique(labels[usable], return_inverse=True)
    if len(classes) < 2:
        return []
    columns = {fact: values[usable] for fact, values in columns.items()}
    facts = [fact for fact, values in columns.items() if (values != values[0]).any()]  # else it cannot tell anything
    tested = [_test(columns[fact], labels, len(classes), seed) for fact in facts]
    corrected = holm([p for _, p in tested])
    found = [Shortcut(*row, 1 / len(classes), p) for row, p in zip(_named(facts, tested), corrected, strict=True)]
    return sorted(found, key=lambda each: (each.p_value, -each.balanced_accuracy))


def _named(facts: Sequence[str], tested: Sequence[tuple[float, float]]) -> list[tuple[str, float]]:
    return [(fact, accuracy) for fact, (accuracy, _) in zip(facts, tested, strict=True)]


def _test(columns: np.ndarray, labels: np.ndarray, num_classes: int, seed: int) -> tuple[float, float]:
    """Return the balanced accuracy and the p value of a permutation test, not corrected."""
    rng = np.random.default_rng(seed)
    truth = balanced_accuracy(columns, labels, num_classes, seed)
    as_good = 0
    for number in range(1, PERMUTATIONS + 1):
        as_good += balanced_accuracy(columns, rng.permutation(labels), num_classes, seed) >= truth
        if as_good == ENOUGH:
            return truth, ENOUGH / number
    return truth, (as_good + 1) / (PERMUTATIONS + 1)


def balanced_accuracy(columns: np.ndarray, labels: np.ndarray, num_classes: int, seed: int) -> float:
    """Cross-validate a naive Bayes classifier on bins `(n, c)`, all classes equally probable beforehand; return the
    mean over classes of the share of right answers."""
    folds = _stratified_folds(labels, seed)
    right = np.zeros(len(labels), bool)
    width = columns.max(axis=0) + 1
    for fold in range(FOLDS):
        held = folds == fold
        scores = np.zeros((int(held.sum()), num_classes))
        for column, bins in zip(columns.T, width.tolist(), strict=True):
            codes = column[~held] * num_classes + labels[~held]
            table = np.bincount(codes, minlength=bins * num_classes).reshape(bins, num_classes) + 1.0
            logs = np.log(table / table.sum(axis=0))
            logs[0] = 0.0
            scores += logs[column[held]]
        right[held] = scores.argmax(axis=1) == labels[held]
    return float(np.mean([right[labels == label].mean() for label in range(num_classes)]))


def _stratified_folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return each example's fold `(n,)`, the members of each class in turn. By hand, for a permutation test divides a
    thousand times a fact."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def bins_of(values: np.ndarray) -> np.ndarray:
    """Divide numbers `(n,)` into at most `BINS` bins of about equal counts, from 1; NaN is 0."""
    known = ~np.isnan(values)
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)[1:-1])) if known.any() else np.empty(0)
    return np.where(known, np.searchsorted(edges, values, "left") + 1, 0)


def codes_of(texts: Sequence[str]) -> np.ndarray:
    """Number the commonest texts from 1; others are 0."""
    names, codes, counts = np.unique(np.asarray(texts, dtype=str), return_inverse=True, return_counts=True)
    common = np.argsort(-counts, kind="stable")[: 4 * BINS]
    ranks = np.zeros(len(names), int)
    ranks[common] = np.where(counts[common] > 1, np.arange(1, len(common) + 1), 0)
    return ranks[codes]


def describe_facts(facts: ImageFacts, paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Return the columns for `find_shortcuts` of size, format, JPEG quality, brightness, border and file name."""
    widths, heights = facts.widths.astype(float), facts.heights.astype(float)
    inner = facts.greys[:, INNER, INNER].mean(axis=(1, 2))
    stems = [path.stem for path in paths]
    numbers = [re.findall(r"\d+", stem) for stem in stems]
    columns = {
        "size": [bins_of(column) for column in (widths, heights, widths * heights, heights / np.maximum(widths, 1))],
        "format": [codes_of(facts.formats.tolist())],
        "JPEG quality": [bins_of(facts.qualities)],
        "brightness": [bins_of(inner)],
        "border": [bins_of(facts.border_steps)],
        "file name": [
            codes_of([re.split(r"\d", stem, maxsplit=1)[0].lower() for stem in stems]),
            codes_of([re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", stem)) for stem in stems]),
            bins_of(np.array([float(found[-1][-15:]) if found else np.nan for found in numbers])),
            bins_of(np.array([float(len(stem)) for stem in stems])),
        ],
    }
    return {fact: np.stack(each, axis=1) for fact, each in columns.items()}
