"""Read images and their classes from a table: CSV or Parquet, one row an image."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

log = logging.getLogger(__name__)

GUESSES = {
    "path": "path file filename file_name filepath file_path image image_path image_file image_name img img_path "
    "image_id id id_code name uuid",
    "label": "label class class_name label_name target category diagnosis species breed dx type y class_id labels",
    "group": "group group_id patient patient_id subject subject_id",
    "split": "split subset partition set",
}
"""Names that columns commonly have, the likeliest first."""


@dataclass(frozen=True)
class LabelRow:
    """One row of a table, as text; `group` and `split` are empty where there is no such column."""

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

    A path need not be exact: a name without folder or ending is found below `root`, if one image alone has it.

    Raises:
        InputError: the table cannot be read, a column is missing or cannot be guessed, a name stands for several
            images, an image has two classes, or none of the images is there. The message names it.
    """
    if root is not None and not root.is_dir():
        raise InputError(f"data.images={root}: no such folder; it is where the paths in {table.name} begin")
    header, cells = read_cells(table, "data.table")
    rows = _label_rows(header, cells, table, columns or {})
    if not known:
        _demand_classes(rows, table)
    return _tree(rows, table, (root or table.parent).absolute())


def _label_rows(
    header: list[str], cells: list[Sequence[str]], table: Path, asked: Mapping[str, str | None]
) -> list[LabelRow]:
    chosen = _columns(header, cells, table, asked)
    log.info("%s: %s", table, ", ".join(f"{use} from '{header[column]}'" for use, column in chosen.items()))
    rows = []
    for row in cells:
        values = {use: row[column].strip() if column < len(row) else "" for use, column in chosen.items()}
        rows.append(LabelRow(**values))
    unlabelled = sum(not (row.label and row.path) for row in rows)
    if unlabelled:
        log.warning("%s: %d of %d rows have no label or no path and are passed over", table, unlabelled, len(rows))
    return [row for row in rows if row.label and row.path]


def _columns(
    header: list[str], cells: list[Sequence[str]], table: Path, asked: Mapping[str, str | None]
) -> dict[str, int]:
    """Find the column of each use: as asked, by a common name, or as the only one that is left."""
    names = [name.strip() for name in header]
    plain = ["_".join(name.lower().replace("-", " ").split()) for name in names]
    chosen: dict[str, int] = {}
    for use, name in asked.items():
        if name and name not in names:
            raise InputError(f"data.{use}_column={name}: {table} has no such column; it has {', '.join(names)}")
        if name:
            chosen[use] = names.index(name)
    with_images = {column for row in cells[:50] for column, cell in enumerate(row) if names_image(cell)}
    for use, guesses in GUESSES.items():
        named = [plain.index(guess) for guess in guesses.split() if guess in plain]
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
    """Check a guess: a column called `set` need not hold splits."""
    return use != "split" or all(column < len(row) and split_named(row[column].strip()) for row in cells)


def _tree(rows: list[LabelRow], table: Path, root: Path) -> ClassFolders:
    finder = _ImageFinder(root, table)
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
        splits[path], groups[path] = _split(row.split, table), row.group or str(path)
    if not any(path.is_file() for path in labels):
        raise InputError(
            f"data.table={table}: none of its {len(labels)} images is there, not even {next(iter(labels))}; "
            "data.images=FOLDER says where the paths begin"
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


def _split(value: str, table: Path) -> str:
    split = split_named(value) if value else "all"
    if split is None:
        raise InputError(f"data.table={table}: '{value}' is no split; expected train, val or test")
    return split


def _demand_classes(rows: Sequence[LabelRow], table: Path) -> None:
    names, paths = {row.label for row in rows}, {row.path for row in rows}
    if len(names) < 2:
        found = f"{len(paths)} labelled image(s) of {len(names)} class(es)"
        raise InputError(f"data.table={table}: {found}; expected two classes")
    if len(names) == len(paths) > 2:
        found = f"each of {len(paths)} images has a label of its own, such as '{min(names)}'"
        raise InputError(f"data.table={table}: {found}; data.label_column says which column holds the classes")


class _ImageFinder:
    """Find the images that a table means; paths may lack their folder or their ending."""

    def __init__(self, root: Path, table: Path) -> None:
        self.root, self.table = root, table

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
        text = text.replace("\\", "/")
        exact = self.root / text
        if exact.is_file():
            return exact
        wanted = PurePosixPath(text.casefold())
        stem = wanted.stem if wanted.suffix in IMAGE_SUFFIXES else wanted.name
        paths = self._by_name.get(wanted.name) or self._by_name.get(stem) or []
        inside = [path for path in paths if path.parent.as_posix().casefold().endswith(f"/{wanted.parent}")]
        paths = inside or paths
        if len(paths) > 1:
            names = " and ".join(str(path.relative_to(self.root)) for path in paths[:2])
            raise InputError(
                f"data.table={self.table}: '{text}' may be {names}; give whole paths, or data.images=FOLDER"
            )
        return paths[0] if paths else exact


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
