"""Read images and their classes from a table: CSV or Parquet, one row an image."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field
from typing_extensions import override

from tl_research.data.class_folders import ClassFolders
from tl_research.data.formats import IMAGE_SUFFIXES
from tl_research.data.inspection import is_junk
from tl_research.data.sources import Source
from tl_research.data.split_folders import split_named
from tl_research.data.table_file import names_image, read_cells
from tl_research.errors import InputError
from tl_research.recipe import recipe

GUESSES = {
    "path": "path file filename file_name filepath file_path image image_path image_file image_name img img_path "
    "image_id id id_code name uuid",
    "label": "label class class_name label_name target category diagnosis species breed dx type y class_id labels",
    "group": "group group_id patient patient_id patient_no patient_number patient_name pat_id pid subject subject_id "
    "participant participant_id person_id individual_id mrn medical_record_number donor_id animal_id plant_id case_id "
    "case_no case_number lesion_id specimen_id slide_id study_id study_instance_uid series_instance_uid",
    "split": "split subset partition set",
}
"""Names that columns commonly have, the likeliest first; case, spaces, `_` and `-` do not matter. Not `case`, `person`
or `individual`, which may be the label."""


@dataclass(frozen=True)
class LabelRow:
    """One row of a table, as text; `group` and `split` are empty where there is no such column."""

    number: int
    path: str
    label: str
    group: str = ""
    split: str = ""


def read_table(
    table: Path,
    root: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    known: Sequence[str] = (),
) -> ClassFolders:
    """List the images of a table without opening them.

    Args:
        table: a CSV file, with any usual separator, or a Parquet file.
        root: the folder that paths are relative to; default: the table's own.
        columns: names of the columns for `path`, `label`, `group` and `split`; those not given are guessed.

        known: the classes of a run, of which some may be missing.

    A path with a folder is taken as it is, but for its case and a missing ending. A name alone is looked for below
    `root`, where one image must have it; so are names that all lie in one folder which is not there.

    Raises:
        InputError: the table cannot be read, a column is missing or cannot be guessed, a cell of a column of splits is
            none, a name stands for several images, an image has two classes, or none of the images is there. The
            message names it.
    """
    if root is not None and not root.is_dir():
        raise InputError(f"data.images={root}: no such folder; it is where the paths in {table.name} begin")
    header, cells = read_cells(table, "data.table")
    chosen = _columns(header, cells, table, columns or {})
    rows = [
        LabelRow(number, **{use: row[column].strip() if column < len(row) else "" for use, column in chosen.items()})
        for number, row in enumerate(cells, 1)
    ]
    labelled = [row for row in rows if row.label and row.path]
    if not known:
        _demand_classes(labelled, table)
    if "split" in chosen:
        _demand_splits(labelled, table, header[chosen["split"]])
    tree = _tree(labelled, table, (root or table.parent).absolute())
    used = ", ".join(f"{use} from '{header[column]}'" for use, column in chosen.items())
    num_left = len(rows) - len(labelled)
    left = (f"{table.name}: {num_left} of {len(rows)} rows have no label or no path: passed over",) if num_left else ()
    return replace(tree, notes=(f"{table}: {used}",), warnings=left)


def _columns(
    header: list[str], cells: list[Sequence[str]], table: Path, asked: Mapping[str, str | None]
) -> dict[str, int]:
    """Find the column of each use: as asked, by a common name, or as the only one that is left."""
    names = [name.strip() for name in header]
    plain = [re.sub(r"[\W_]+", "", name.lower()) for name in names]
    chosen: dict[str, int] = {}
    for use, name in asked.items():
        if name and name not in names:
            raise InputError(f"data.{use}_column={name}: {table} has no such column; it has {', '.join(names)}")
        if name:
            chosen[use] = names.index(name)
    with_images = {column for row in cells[:50] for column, cell in enumerate(row) if names_image(cell)}
    for use, guesses in GUESSES.items():
        named = [plain.index(guess) for guess in guesses.replace("_", "").split() if guess in plain]
        if use == "path" and with_images:  # what a column holds says more than its name
            named = [column for column in named if column in with_images] or [*with_images][: len(with_images) == 1]
        free = [column for column in named if column not in chosen.values() and _fits(use, column, cells)]
        if use not in chosen and free:
            chosen[use] = free[0]
    rest = [column for column in range(len(names)) if column not in chosen.values()]
    if "path" in chosen and "label" not in chosen and len(rest) == 1:
        chosen["label"] = rest[0]
    for use in ("path", "label"):
        if use not in chosen:
            raise InputError(
                f"data.table={table}: which column holds the {use}? Give data.{use}_column, one of {', '.join(names)}"
            )
    return {use: chosen[use] for use in GUESSES if use in chosen}


def _fits(use: str, column: int, cells: list[Sequence[str]]) -> bool:
    """Check a guess: a column called `set` need not hold splits; most cells must, so that an error in one is seen."""
    words = [row[column].strip() for row in cells if column < len(row) and row[column].strip()]
    return use != "split" or 2 * sum(split_named(word) is not None for word in words) > len(words)


def _demand_splits(rows: Sequence[LabelRow], table: Path, column: str) -> None:
    for row in rows:
        if not split_named(row.split):
            wrong = f"has '{row.split}'" if row.split else "is empty"
            raise InputError(
                f"data.table={table}: column '{column}' {wrong} in row {row.number}; use train, val or test"
            )


def _tree(rows: list[LabelRow], table: Path, root: Path) -> ClassFolders:
    finder = _ImageFinder(root, table, {PurePosixPath(_slashes(row.path)).parent for row in rows})
    labels: dict[Path, str] = {}
    splits: dict[Path, str] = {}
    groups: dict[Path, str] = {}
    for row in rows:
        path = finder.find(row.path)
        if labels.setdefault(path, row.label) != row.label:
            raise InputError(
                f"data.table={table}: {row.path} has the labels '{labels[path]}' and '{row.label}'; "
                "an image has one class"
            )
        splits[path], groups[path] = split_named(row.split) or "all", row.group or str(path)
    if not any(path.is_file() for path in labels):
        raise InputError(
            f"data.table={table}: none of its {len(labels)} images is there, not even {next(iter(labels))}; "
            f"{finder.advice([row.path for row in rows])}"
        )
    names = sorted(set(labels.values()))
    files: dict[str, dict[str, list[Path]]] = {
        split: {name: [] for name in names} for split in ("all", "train", "val", "test") if split in splits.values()
    }
    for path in sorted(labels):
        files[splits[path]][labels[path]].append(path)
    outside = not all(path.is_relative_to(root) for path in labels)
    below = Path(os.path.commonpath([str(path.parent) for path in labels])) if outside else root
    return ClassFolders(below, files, [], groups=groups if any(row.group for row in rows) else {})


def _demand_classes(rows: Sequence[LabelRow], table: Path) -> None:
    names, paths = {row.label for row in rows}, {row.path for row in rows}
    if len(names) < 2:
        found = f"{len(paths)} labelled image(s) of {len(names)} class(es)"
        raise InputError(f"data.table={table}: {found}; expected two classes")
    if len(names) == len(paths) > 2:
        found = f"each of {len(paths)} images has a label of its own, such as '{min(names)}'"
        raise InputError(f"data.table={table}: {found}; data.label_column says which column holds the classes")


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


class _ImageFinder:
    """Find the images that a table means; `folders` are those of its paths."""

    def __init__(self, root: Path, table: Path, folders: set[PurePosixPath]) -> None:
        self.root, self.table = root, table
        self._foreign = len(folders) == 1 and not (root / next(iter(folders))).is_dir()
        """Whether all paths name one folder, which is not here, as on another machine: it tells no image from
        another."""

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not is_junk(name))
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name):
                    for key in {path.name.casefold(), path.stem.casefold()}:
                        found[key].append(path)
        return found

    def find(self, text: str) -> Path:
        """Return the image's path; where there is none, the path that it would have. Raises `InputError` if several
        images have the name."""
        exact = self.root / _slashes(text)
        if exact.is_file():
            return exact
        wanted = PurePosixPath(_slashes(text).casefold())
        paths = self._by_name.get(wanted.name, [])
        if str(wanted.parent) != "." and not self._foreign:
            folder = exact.parent.as_posix().casefold()
            paths = [path for path in paths if path.parent.as_posix().casefold() == folder]
        elif not paths and wanted.suffix in IMAGE_SUFFIXES:
            paths = self._by_name.get(wanted.stem, [])
        if len(paths) > 1:
            names = " and ".join(str(path.relative_to(self.root)) for path in paths[:2])
            raise InputError(
                f"data.table={self.table}: '{text}' may be {names}; give whole paths, or data.images=FOLDER"
            )
        return paths[0] if paths else exact

    def advice(self, texts: Sequence[str]) -> str:
        """Say where the paths should begin, by the first image here that has the most of a path's end."""
        ends: list[tuple[int, tuple[str, ...], Path]] = []
        for wanted in (PurePosixPath(_slashes(text)).parts for text in texts[:100]):
            for path in self._by_name.get("".join(wanted[-1:]).casefold(), []):
                pairs = zip(reversed(wanted), (wanted[-1], *reversed(path.parent.parts)), strict=False)
                ends.append((sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), wanted, path))
        length, wanted, path = max(ends, key=lambda end: end[0], default=(0, (), self.root))
        if not length:
            return "data.images=FOLDER says where the paths begin"
        begin = Path(*path.parts[:-length])
        if length == len(wanted):
            return f"{path} is there: give data.images={begin}"
        extra = "/".join(wanted[:-length])
        own = "" if begin == self.root else f" and give data.images={begin}"
        return f"{path} is there: leave out '{extra}/' in the paths{own}"


Column = Annotated[str, Field(min_length=1)] | None


@recipe
class Table(Source):
    """Images and classes by a table. `images` is the folder that paths are relative to; columns that are not named are
    guessed."""

    table: Annotated[str, Field(min_length=1)]
    images: Annotated[str, Field(min_length=1)] | None = None
    path_column: Column = None
    label_column: Column = None
    group_column: Column = None
    split_column: Column = None

    @override
    def tree(self) -> ClassFolders:
        return self.labelled_tree(())

    @override
    def labelled_tree(self, class_names: Sequence[str]) -> ClassFolders:
        columns = {use: getattr(self, f"{use}_column") for use in GUESSES}
        root = Path(self.images).expanduser() if self.images else None
        return read_table(Path(self.table).expanduser(), root, columns, class_names)

    @override
    def preflight(self) -> None:
        self.tree()
