"""Find a table beside the images that has their labels: then numbered folders are parts of an archive, not classes."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tl_research.data.folder_scan import FolderNode
from tl_research.data.split_folders import SplitName
from tl_research.errors import InputError

DELIMITERS = {".csv": ",;\t|", ".tsv": "\t", ".txt": " ,;\t|"}
ANSWERS = ["path", "prediction"]
"""The first columns of what `predict` writes, which are answers of a model and no labels."""
MOST_ROWS = 200_000
MOST_TABLES = 20
NAMED = 0.5
"""Share of the images that a column must name."""
AGREE = 0.9
"""Share of the images of which folder and column must say the same."""
MANY = 20
"""Distinct numbers of which more are measurements, not labels."""


def find_table(tree: FolderNode, images: Sequence[Path]) -> Path | None:
    """Return a table in or beside a folder that names at least half of these images; None if there is none."""
    return next((table for table, _ in _tables(tree, images)), None)


def demand_agreement(tree: FolderNode, classes: Sequence[tuple[str, list[Path]]], key: str) -> None:
    """Check that no table names the images and contradicts their folders. Raises `InputError` if one does."""
    folder_of = {path: name for name, paths in classes for path in paths}
    for table, columns in _tables(tree, list(folder_of)):
        labels = [column for column in columns if _may_be_labels(column)]
        if labels and not any(_agrees(column, folder_of) for column in labels):
            names = ", ".join(f"'{name}'" for name in sorted(set(folder_of.values()))[:3])
            raise InputError(
                f"{key}={tree.path}: {table} names the images, and none of its columns agrees with the folders "
                f"({names}), so these are no classes; use data=csv with this table, or, if they are, data.train_dir=."
            )


def _tables(tree: FolderNode, images: Sequence[Path]) -> Iterator[tuple[Path, list[dict[Path, str]]]]:
    """Yield tables that name the images, each with the other columns: the value of each image that is named."""
    inside = [path for node in tree.walk() for path in node.files]
    with contextlib.suppress(OSError):
        inside += sorted(path for path in tree.path.absolute().parent.iterdir() if path.suffix)
    paths = [path for path in inside if path.suffix.lower() in DELIMITERS][:MOST_TABLES]
    places = _places(images) if paths else {}
    for path in paths:
        rows = _read(path)
        if rows and rows[0][: len(ANSWERS)] == ANSWERS:
            continue
        named = [_named(rows, column, places) for column in range(max(map(len, rows), default=0))]
        best = max(range(len(named)), key=lambda column: len(named[column]), default=None)
        if best is not None and len(named[best]) >= NAMED * len(images) > 0:
            rest = [column for column in range(len(named)) if column != best]
            yield path, [{p: rows[r][c].strip() for p, r in named[best].items() if c < len(rows[r])} for c in rest]


def _read(path: Path) -> list[list[str]]:
    with (
        contextlib.suppress(OSError, UnicodeDecodeError, csv.Error),
        path.open(newline="", encoding="utf-8-sig") as file,
    ):
        first = "".join(itertools.islice(file, 20))
        delimiter = max(DELIMITERS[path.suffix.lower()], key=first.count)
        file.seek(0)
        return list(itertools.islice(csv.reader(file, delimiter=delimiter), MOST_ROWS))
    return []


def _places(images: Sequence[Path]) -> dict[str, Path | None]:
    """Map the names by which a table may mean an image to it: the ends of its path, with and without suffix. None for a
    name that several have."""
    places: dict[str, Path | None] = {}
    for path in images:
        for end in ("/".join(path.parts[-count:]).casefold() for count in (1, 2, 3)):
            for name in {end, end.removesuffix(path.suffix.casefold())}:
                places[name] = None if name in places else path
    return places


def _named(rows: list[list[str]], column: int, places: dict[str, Path | None]) -> dict[Path, int]:
    """Map each image that a column names to its row."""
    named = {}
    for number, row in enumerate(rows):
        text = row[column].strip().replace("\\", "/").casefold() if column < len(row) else ""
        parts = PurePosixPath(text).parts
        path = next((p for count in (3, 2, 1) if (p := places.get("/".join(parts[-count:])))), None) if parts else None
        if path:
            named[path] = number
    return named


def _may_be_labels(column: dict[Path, str]) -> bool:
    """Return whether the values repeat, differ, and are neither measurements nor splits."""
    values = set(column.values())
    numbers = all(re.fullmatch(r"[-+.\deE]*", value) for value in values)
    splits = all(SplitName.of(value) for value in values)
    return 1 < len(values) <= max(len(column) // 2, 2) and not (numbers and len(values) > MANY) and not splits


def _agrees(column: dict[Path, str], folder_of: dict[Path, str]) -> bool:
    """Return whether a folder says what the column does: nearly all its images have one value, and folders differ. Or
    each value lies in one folder, where the folders have names, not numbers, and values many images."""
    values_in: dict[str, Counter[str]] = defaultdict(Counter)
    folders_of: dict[str, Counter[str]] = defaultdict(Counter)
    for path, value in column.items():
        values_in[folder_of[path]][value] += 1
        folders_of[value][folder_of[path]] += 1
    usual = {folder: counts.most_common(1)[0] for folder, counts in values_in.items()}
    if sum(count for _, count in usual.values()) >= AGREE * len(column):
        return len({value for value, _ in usual.values()}) > 1
    one_folder = sum(counts.most_common(1)[0][1] for counts in folders_of.values()) >= AGREE * len(column)
    numbered = len({re.sub(r"\d+", "", folder) for folder in values_in}) == 1
    return one_folder and not numbered and len(column) >= 5 * len(folders_of)
