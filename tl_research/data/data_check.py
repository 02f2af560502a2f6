"""Gather what the one reading of each file tells about a data set: equal images, wrong endings, balance and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.data.file_index import Inspection
from tl_research.data.formats import belongs_to
from tl_research.data.quality import EqualImages, exact_duplicates, join_equal
from tl_research.data.splits import first_of_stem
from tl_research.errors import InputError

SHOWN = 3


@dataclass(frozen=True)
class DataCheck:
    """Findings on the readable images of a data set, before any were left out by `data.fraction` or `data.per_class`;
    `paths` begin below `root`, `given[i]` is the split that the source has for `paths[i]`, or `all`."""

    root: Path = Path()
    paths: Sequence[Path] = ()
    classes: Sequence[str] = ()
    given: Sequence[str] = ()
    equal: Sequence[EqualImages] = ()
    formats: Mapping[Path, str] = field(default_factory=dict)
    """The format, by Pillow's name, of each file whose ending says another; such files are used."""

    @classmethod
    def of(
        cls, root: Path, inspections: Sequence[Inspection], labels: np.ndarray, names: Sequence[str], given: np.ndarray
    ) -> DataCheck:
        """Check readable images; `labels` `(n,)` are positions in `names`."""
        prints = [one.fingerprint for one in inspections]
        pixels = [found.pixels.encode() if found else b"" for found in prints]
        return cls(
            root=root,
            paths=[one.path for one in inspections],
            classes=[names[label] for label in labels],
            given=given.tolist(),
            equal=exact_duplicates([one.digest for one in inspections], pixels, labels, given.tolist()),
            formats={
                one.path: found.format
                for one, found in zip(inspections, prints, strict=True)
                if found and not belongs_to(one.path.suffix, found.format)
            },
        )

    @property
    def conflicts(self) -> list[EqualImages]:
        """Return the sets of equal images with more than one label."""
        return [each for each in self.equal if each.is_conflict]

    @property
    def leaks(self) -> list[EqualImages]:
        """Return the sets of equal images that lie in more than one of the splits that the source has."""
        return [each for each in self.equal if each.is_leak]

    def demand_no_leaks(self) -> None:
        """Raise `InputError` if the source's splits share equal images; it names the first few."""
        if self.leaks:
            raise InputError(
                f"{self.root}: {len(self.leaks)} set(s) of equal images lie in more than one split, so a result would "
                f"look better than it is: {self._listed(self.leaks)}. Remove all but one of each, or accept it with "
                f"data.allow_leaks=true"
            )

    def first_alike(self, pooled: bool) -> np.ndarray:
        """Return for each image the index of the first that is equal, or of its folder, stem and class, in the same
        given split: where splits are cut, it goes where that one goes, `(n,)`. `pooled`: they are cut from all but the
        test."""
        alike = np.arange(len(self.paths))
        for each in self.equal:
            alike[list(each.members)] = each.members[0]
        sides = [given == "test" if pooled else given for given in self.given]
        columns = (first_of_stem(self.paths, np.unique(self.classes, return_inverse=True)[1]), alike)
        return join_equal(*([*zip(sides, column.tolist(), strict=True)] for column in columns))

    def notes(self) -> list[str]:
        """Say in one line each what was found that changes no result."""
        lines = []
        within = [each for each in self.equal if not (each.is_conflict or each.is_leak)]
        if within:
            lines.append(f"{len(within)} set(s) of equal images, each kept in one split: {self._listed(within)}")
        if self.formats:
            shown = [f"{path_below(path, self.root)} is {format_}" for path, format_ in self.formats.items()][:SHOWN]
            more = f" and {len(self.formats) - SHOWN} more" if len(self.formats) > SHOWN else ""
            lines.append(
                f"{len(self.formats)} file(s) with a wrong ending, used all the same: {', '.join(shown)}{more}"
            )
        return lines

    def warnings(self) -> list[str]:
        """Say in one line each what was found that spoils a result."""
        lines = []
        if self.conflicts:
            lines.append(
                f"{len(self.conflicts)} set(s) of equal images with different labels: {self._listed(self.conflicts)}"
            )
        if self.leaks:
            lines.append(
                f"{len(self.leaks)} set(s) of equal images lie in more than one split (data.allow_leaks), so results "
                f"look better than they are: {self._listed(self.leaks)}"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `data_check.json`."""
        return {
            "num_images": len(self.paths),
            "num_duplicates": sum(len(each.members) - 1 for each in self.equal),
            "num_conflicts": len(self.conflicts),
            "num_leaks": len(self.leaks),
            "equal_images": [
                {
                    "kind": each.kind,
                    "is_conflict": each.is_conflict,
                    "is_leak": each.is_leak,
                    "images": [
                        {"path": str(self.paths[i]), "class": self.classes[i], "split": self.given[i]}
                        for i in each.members
                    ],
                }
                for each in self.equal
            ],
            "wrong_endings": [{"path": str(path), "format": format_} for path, format_ in self.formats.items()],
        }

    def _listed(self, sets: Sequence[EqualImages]) -> str:
        paths = [[path_below(self.paths[i], self.root) for i in each.members[:SHOWN]] for each in sets[:SHOWN]]
        return "; ".join(map(" = ".join, paths)) + (f"; and {len(sets) - SHOWN} more" if len(sets) > SHOWN else "")


def path_below(path: Path, root: Path) -> str:
    """Write a path as it is below a folder; one that lies elsewhere as it is."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
