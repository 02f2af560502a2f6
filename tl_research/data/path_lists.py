"""Read lists that name images by their path below the data's root: the group or the split of each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from tl_research.data.class_folders import ClassFolders
from tl_research.data.quality import join_equal
from tl_research.data.split_folders import split_named
from tl_research.data.table_file import read_cells
from tl_research.errors import InputError

log = logging.getLogger(__name__)

LISTS = frozenset({".csv", ".tsv", ".txt", ".parquet"})


def is_list(text: str) -> bool:
    """Tell a list's file from a regular expression, whether it is there or not."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # an expression may be no path at all
        return PurePosixPath(text.lower()).suffix in LISTS or Path(text).expanduser().is_file()
    return False


def listed_groups(paths: Sequence[Path], root: Path, table: Path) -> np.ndarray:
    """Return each image's group, `(n,)` as text, by a table with the columns `path` and `group`. A path in several rows
    joins their groups; an image that is not in the table is a group of its own, by the name of its path.

    Raises:
        InputError: the table cannot be read, a column is missing, a row has no group, or no row names an image.
    """
    places = _Places(paths, root)
    rows = _pairs(table, "data.group_by", "group")
    found = [places.find(text) for text, _ in rows]
    first = join_equal([str(path or text) for path, (text, _) in zip(found, rows, strict=True)], [g for _, g in rows])
    group_of = {path: rows[leader][1] for path, leader in zip(found, first.tolist(), strict=True) if path}
    if not group_of:
        raise InputError(
            f"data.group_by={table}: it names no image in {root}, not even {rows[0][0]}; paths begin there"
        )
    gone = [text for (text, _), path in zip(rows, found, strict=True) if not (path or (root / text).exists())]
    if gone:
        log.warning("data.group_by=%s: %d of its images are not in %s, such as %s", table, len(gone), root, gone[0])
    return np.array([group_of.get(path) or path.relative_to(root).as_posix() for path in paths])


def split_by_list(tree: ClassFolders, source: Path) -> ClassFolders:
    """Divide the images of a tree as a list says: a table with the columns `path` and `split`, or a folder with a text
    file for each split, such as `train.txt`, one path a line. The endings of paths may be missing.

    Raises:
        InputError: the list cannot be read, names no training images, leaves an image out, gives it two splits, or
            names what is no image of the tree.
    """
    class_of = {path: name for classes in tree.files.values() for name, paths in classes.items() for path in paths}
    places = _Places([*class_of], tree.root)
    key, splits, unknown = f"data.split_by={source}", dict[Path, str](), list[str]()
    for text, word in _lines(source) if source.is_dir() else _pairs(source, "data.split_by", "split"):
        split, path = split_named(word), places.find(text)
        if split is None:
            raise InputError(f"{key}: '{word}' of {text} is no split; write train, val or test")
        if path is None:
            unknown.append(text)
        elif splits.setdefault(path, split) != split:
            raise InputError(f"{key}: {text} is in {splits[path]} and in {split}; an image is in one split")
    left_out = [path.relative_to(tree.root).as_posix() for path in class_of if path not in splits]
    for names, what in ((unknown, "names what is no image in a class of"), (left_out, "leaves out images of")):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise InputError(f"{key}: it {what} {tree.root}: {names[0]}{more}")
    if "train" not in splits.values():
        raise InputError(f"{key}: it names no training images; write train, val or test beside each path")
    files: dict[str, dict[str, list[Path]]] = {
        split: {name: [] for name in tree.class_names} for split in ("train", "val", "test") if split in splits.values()
    }
    for path in sorted(class_of):
        files[splits[path]][class_of[path]].append(path)
    return replace(tree, files=files)


class _Places:
    """Find images by their path below a root, with or without its ending."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self._root = root.absolute()
        whole = {path.relative_to(root).as_posix(): path for path in paths}
        stems: dict[str, Path | None] = {}
        for name, path in whole.items():
            stem = name.removesuffix(path.suffix)
            stems[stem] = None if stem in stems else path
        self._found: dict[str, Path | None] = {**stems, **whole}

    def find(self, text: str) -> Path | None:
        path = PurePosixPath(text.replace("\\", "/"))
        if path.is_absolute() and path.is_relative_to(self._root.as_posix()):
            path = path.relative_to(self._root.as_posix())
        return self._found.get(str(path))


def _pairs(table: Path, key: str, use: str) -> list[tuple[str, str]]:
    """Read the columns `path` and `use` of a table, or the two of one without a header."""
    header, rows = read_cells(table, key)
    names = [name.strip().lower() for name in header]
    if names == ["column 1", "column 2"]:
        names = ["path", use]
    for name in ("path", use):
        if name not in names:
            raise InputError(f"{key}={table}: it has no column '{name}'; it has {', '.join(header)}")
    columns = [names.index("path"), names.index(use)]
    pairs = []
    for number, row in enumerate(rows, 1):
        path, value = (row[column].strip() if column < len(row) else "" for column in columns)
        if not (path and value):
            raise InputError(f"{key}={table}: row {number} ({path or value}) has no {use if path else 'path'}")
        pairs.append((path, value))
    if not pairs:
        raise InputError(f"{key}={table}: it has no rows")
    return pairs


def _lines(folder: Path) -> list[tuple[str, str]]:
    files = sorted(path for path in folder.glob("*.txt") if split_named(path.stem))
    if not files:
        raise InputError(f"data.split_by={folder}: it holds no train.txt, val.txt or test.txt")
    try:
        texts = [path.read_text("utf-8-sig") for path in files]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.split_by={folder}: cannot be read ({error})") from None
    return [
        (line.strip(), path.stem)
        for path, text in zip(files, texts, strict=True)
        for line in text.splitlines()
        if line.strip()
    ]
