"""What a full check has found about a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tl_research.data.data_check import path_below
from tl_research.data.datamodule import DataModule
from tl_research.data.image_facts import ImageFacts
from tl_research.data.label_doubts import LabelDoubt
from tl_research.data.near_duplicates import NearPair
from tl_research.data.quality import equal_sets, join_pairs
from tl_research.data.shortcuts import Shortcut

EXACT = 2.0
"""The score of equal images: cosine and correlation are 1 each."""


def names_below(data: DataModule) -> list[str]:
    """Return the path of each image below the data's root."""
    return [path_below(path, data.root) for path in data.paths]


@dataclass(frozen=True)
class DuplicatePair:
    """Two images, by index, that show the same: equal `file`s, equal `pixels`, or `near` duplicates."""

    first: int
    second: int
    kind: str
    score: float


@dataclass(frozen=True)
class Growth:
    """The learning curve: accuracies at numbers of images of a class, and what is expected of more."""

    measured: dict[int, float]
    expected: dict[int, tuple[float, float, float]]
    """The accuracy with so many more images of each class, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class CheckFindings:
    """Findings on the images of `data`; indices are those of its examples."""

    data: DataModule
    facts: ImageFacts
    near: Sequence[NearPair]
    doubts: Sequence[LabelDoubt]
    shortcuts: Sequence[Shortcut]
    growth: Growth | None

    @cached_property
    def names(self) -> list[str]:
        """The path of each image below the data's root."""
        return names_below(self.data)

    @cached_property
    def pairs(self) -> list[DuplicatePair]:
        """All pairs, equal images first; of a set of equal images, the first with each other."""
        exact = [
            DuplicatePair(each.members[0], other, each.kind, EXACT)
            for each in self.data.found.equal
            for other in each.members[1:]
        ]
        return [*exact, *(DuplicatePair(pair.first, pair.second, "near", pair.score) for pair in self.near)]

    @cached_property
    def groups(self) -> list[list[int]]:
        """The sets of images that pairs connect, by their first image."""
        first = join_pairs(len(self.data), [(pair.first, pair.second) for pair in self.pairs])
        return [list(members) for members in equal_sets(first)]

    @cached_property
    def leaks(self) -> list[DuplicatePair]:
        """The pairs that lie in two of the splits that the source has."""
        given = self.data.found.given
        return [pair for pair in self.pairs if given[pair.first] != given[pair.second]]

    @cached_property
    def conflicts(self) -> list[DuplicatePair]:
        """The pairs with different labels."""
        return [pair for pair in self.pairs if self.data.labels[pair.first] != self.data.labels[pair.second]]

    @cached_property
    def odd(self) -> dict[int, str]:
        """What is odd about single images: blank, tiny, extreme, or a wrong ending."""
        endings = self.data.found.formats
        notes = [
            ", ".join(filter(None, (oddity, f"is {endings[path]}" if path in endings else "")))
            for path, oddity in zip(self.data.paths, self.facts.oddities(), strict=True)
        ]
        return {index: note for index, note in enumerate(notes) if note}

    def class_of(self, index: int) -> str:
        """Return the name of an image's class."""
        return self.data.class_names[self.data.labels[index]]
