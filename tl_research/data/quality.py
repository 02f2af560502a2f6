"""Find equal images in a data set: arrays in, findings out. It never asks for features; who has some brings them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class EqualImages:
    """A set of equal images, by ascending index: equal `file`s, or of equal upright `pixels` in different files."""

    kind: Literal["file", "pixels"]
    members: tuple[int, ...]
    is_conflict: bool
    """Whether they have more than one label."""
    is_leak: bool
    """Whether they lie in more than one split."""


def join_equal(*columns: Sequence[Hashable | None]) -> np.ndarray:
    """Join items that agree in any column, directly or through others; return for each the index of the first item
    that it is joined with, its own if none, `(n,)`. None and empty values agree with nothing."""
    pairs: list[tuple[int, int]] = []
    for column in columns:
        seen: dict[Hashable, int] = {}
        for item, value in enumerate(column):
            if value not in (None, "", b"") and (other := seen.setdefault(value, item)) != item:
                pairs.append((other, item))
    return join_pairs(len(columns[0]), pairs)


def join_pairs(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Join items that pairs connect, directly or through others; return as `join_equal` does, `(count,)`."""
    if not pairs:
        return np.arange(count)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = np.array(pairs, int).T
    numbers = connected_components(coo_matrix((np.ones(len(pairs)), (one, other)), (count, count)), directed=False)[1]
    return np.unique(numbers, return_index=True)[1][numbers]


def equal_sets(first: np.ndarray) -> list[tuple[int, ...]]:
    """List the sets of two or more items that `join_equal` or `join_pairs` made, each by ascending index."""
    sets: dict[int, list[int]] = defaultdict(list)
    for item, leader in enumerate(first.tolist()):
        sets[leader].append(item)
    return [tuple(members) for members in sets.values() if len(members) > 1]


def exact_duplicates(
    files: Sequence[bytes], pixels: Sequence[bytes], labels: Sequence[int] | np.ndarray, splits: Sequence[str]
) -> list[EqualImages]:
    """List the sets of equal images, in the order of their first members.

    Args:
        files: the digest of each file's content.
        pixels: the digest of each image's upright pixels; empty where it equals no other image.
        labels: the class of each image.
        splits: the split of each image as the source has it: train, val or test; or `all`.
    """
    return [
        EqualImages(
            kind="file" if len({files[i] for i in members}) == 1 else "pixels",
            members=members,
            is_conflict=len({int(labels[i]) for i in members}) > 1,
            is_leak=len({str(splits[i]) for i in members}) > 1,
        )
        for members in equal_sets(join_equal(files, pixels))
    ]
