"""What a full check has found about a data set, and the tables that tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tl_research.data.datamodule import DataModule
from tl_research.data.image_facts import ImageFacts
from tl_research.data.label_doubts import LabelDoubt
from tl_research.data.near_duplicates import NearPair, duplicate_groups
from tl_research.data.shortcuts import Shortcut

EXACT = 2.0
"""The score of equal images: cosine and correlation are 1 each."""

Table = tuple[list[str], list[list[Any]]]
"""A header and rows."""


def names_below(data: DataModule) -> list[str]:
    """Return the path of each image below the data's root."""
    return [p.relative_to(data.root).as_posix() if p.is_relative_to(data.root) else str(p) for p in data.paths]


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
        numbers = duplicate_groups(len(self.data), [(pair.first, pair.second) for pair in self.pairs])
        order = np.argsort(numbers, kind="stable")
        sets = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        return sorted(members.tolist() for members in sets if len(members) > 1)

    def _given(self, index: int) -> str:
        return str(self.data.found.given[index])

    @cached_property
    def leaks(self) -> list[DuplicatePair]:
        """The pairs that lie in two of the splits that the source has."""
        return [pair for pair in self.pairs if self._given(pair.first) != self._given(pair.second)]

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

    def manifest(self) -> Table:
        """List every file: used, set aside, or passed over."""
        group_of = {index: name for name, members in self._named_groups() for index in members}
        data, facts, header = self.data, self.facts, ["path", "digest", "format", "size"]
        rows: list[list[Any]] = [
            [
                *(name, data.digests[i].hex(), facts.formats[i], f"{facts.widths[i]}x{facts.heights[i]}"),
                *(self.class_of(i), group_of.get(i, ""), data.split_of[i], "used", self.odd.get(i, "")),
            ]
            for i, name in enumerate(self.names)
        ]
        rows += [[str(bad.path), bad.digest.hex(), *[""] * 5, "set aside", bad.reason] for bad in data.quarantined]
        rows += [[str(path), *[""] * 6, "passed over", "not an image in a class folder"] for path in data.ignored]
        return [*header, "class", "group", "split", "status", "reason"], rows

    def _named_groups(self) -> list[tuple[str, list[int]]]:
        return [(f"duplicates-{number:04}", members) for number, members in enumerate(self.groups, 1)]

    def duplicates(self) -> Table:
        """List the images of each set of duplicates, as `data.group_by` takes it."""
        best: dict[int, DuplicatePair] = {}
        for pair in self.pairs:
            for index in (pair.first, pair.second):
                if index not in best or pair.score > best[index].score:
                    best[index] = pair
        rows = [
            [self.names[index], name, best[index].kind, best[index].score]
            for name, members in self._named_groups()
            for index in members
        ]
        return ["path", "group", "kind", "score"], rows

    def labels(self) -> Table:
        """List the labels, the most doubtful first."""
        rows = [
            [self.names[each.index], self.class_of(each.index), self.data.class_names[each.suggested], each.score]
            for each in self.doubts
        ]
        return ["path", "label", "suggested", "score"], rows

    def leaks_table(self) -> Table:
        """List the pairs that lie in two of the source's splits."""
        rows = [
            [
                *(self.names[pair.first], self._given(pair.first), self.names[pair.second], self._given(pair.second)),
                *(pair.kind, pair.score),
            ]
            for pair in self.leaks
        ]
        return ["path", "split", "other", "other_split", "kind", "score"], rows

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `check.json`."""
        growth = self.growth
        return {
            "dataset": self.data.dataset,
            "root": str(self.data.root),
            "num_images": len(self.data),
            "num_set_aside": len(self.data.quarantined),
            "num_passed_over": len(self.data.ignored),
            "num_duplicate_groups": len(self.groups),
            "num_near_pairs": len(self.near),
            "num_conflicts": len(self.conflicts),
            "num_leaks": len(self.leaks),
            "num_label_doubts": sum(doubt.is_confident for doubt in self.doubts),
            "near_duplicates": [
                {"path": self.names[pair.first], "other": self.names[pair.second], "score": pair.score}
                for pair in self.near
            ],
            "equal_images": self.data.found.as_dict()["equal_images"],
            "odd_images": [{"path": self.names[index], "what": what} for index, what in self.odd.items()],
            "shortcuts": [asdict(each) | {"is_found": each.is_found} for each in self.shortcuts],
            "learning_curve": None if growth is None else asdict(growth),
        }
