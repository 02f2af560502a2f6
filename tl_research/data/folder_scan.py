"""List a folder tree once, without junk. Training, `predict` and `evaluate` all read folders through `scan`."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tl_research.data.inspection import is_image_name, is_junk
from tl_research.errors import InputError

RUN_FILES = {"status.json", "config.yaml", "metrics.json", "classes.json", "history.csv", "model.keras"}
"""Files of a run directory: a folder with two of them holds results, not photographs."""

MOST_COMPARED = 20
"""Files of a supposed copy that are compared byte by byte; of the others the size."""


@dataclass(frozen=True)
class FolderNode:
    """A folder with its files and folders, both sorted by name, without junk."""

    path: Path
    files: list[Path]
    folders: list[FolderNode]

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.name

    @cached_property
    def images(self) -> list[Path]:
        """The images directly in it."""
        return [path for path in self.files if is_image_name(path)]

    @cached_property
    def filled(self) -> list[FolderNode]:
        """The folders in it that hold an image at any depth."""
        return [folder for folder in self.folders if folder.has_images]

    @cached_property
    def has_images(self) -> bool:
        """Whether there is an image in it at any depth."""
        return bool(self.images) or any(folder.has_images for folder in self.folders)

    def walk(self) -> Iterator[FolderNode]:
        """Yield the folder and all folders in it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def all_images(self) -> list[Path]:
        """List the images in it at any depth, sorted by path."""
        return sorted(path for node in self.walk() for path in node.images)

    def find(self, path: Path) -> FolderNode | None:
        """Find a folder in the tree by its path."""
        return next((node for node in self.walk() if node.path == path), None)

    def without(self, *left_out: FolderNode) -> FolderNode:
        """Return the tree without some of its folders."""
        paths = {node.path for node in left_out}
        return FolderNode(
            self.path, self.files, [f.without(*left_out) for f in self.folders if f.path not in paths]
        ) if paths else self  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A tree without junk and without copies of itself; `junk` and `copies` are what was left out."""

    tree: FolderNode
    junk: list[Path]
    copies: list[Path]


def scan(root: Path, key: str) -> Scan:
    """List a folder tree without opening images: hidden files, files of operating systems, and our own runs are junk;
    so are links to a folder around them. A folder whose images all lie in the folder around it, too, is a copy.

    Raises:
        InputError: a folder cannot be read.
    """
    junk: list[Path] = []
    above = root.absolute().parents  # a link to one of them would bring in the whole disk
    tree = _scan(root, key, junk, frozenset(_inode(path) for path in above))
    copies = list(_copies(tree))
    return Scan(tree.without(*copies), junk, [node.path for node in copies])


def _scan(folder: Path, key: str, junk: list[Path], around: frozenset[tuple[int, int]]) -> FolderNode:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{key}: the folder {folder} cannot be read (no permission)")
    try:
        stat = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{key}: the folder {folder} cannot be read ({error.strerror})") from None
    around |= {(stat.st_dev, stat.st_ino)}
    files, folders = [], []
    for path in entries:
        if is_junk(path.name):
            junk.append(path)
        elif not path.is_dir():
            files.append(path)
        elif _is_run(path) or (path.is_symlink() and _inode(path) in around):
            junk.append(path)
        else:
            folders.append(_scan(path, key, junk, around))
    return FolderNode(folder, files, folders)


def _inode(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _is_run(folder: Path) -> bool:
    if not os.access(folder, os.X_OK):
        return False  # `_scan` names it
    return sum((folder / name).is_file() for name in RUN_FILES) > 1


def _copies(around: FolderNode) -> Iterator[FolderNode]:
    for folder in around.folders:
        inner = folder
        while len(inner.filled) == 1 and not inner.images:
            inner = inner.filled[0]
        if inner.has_images and _is_copy(inner, around, folder):
            yield folder
        else:
            yield from _copies(folder)


def _is_copy(inner: FolderNode, around: FolderNode, holder: FolderNode) -> bool:
    """Return whether each image of `inner` lies at the same place in `around`, outside of the `holder` of `inner`."""
    nodes = [(inner, around)]
    for node, other in nodes:  # grows while it is read
        names = {path.name for path in other.files}
        if any(path.name not in names for path in node.images):
            return False
        others = {folder.name: folder for folder in other.folders if folder is not holder}
        if any(folder.name not in others for folder in node.filled):
            return False
        nodes += [(folder, others[folder.name]) for folder in node.filled]
    pairs = [(path, other.path / path.name) for node, other in nodes for path in node.images]
    try:
        return all(one.stat().st_size == other.stat().st_size for one, other in pairs) and all(
            filecmp.cmp(*pair, shallow=False) for pair in pairs[:: max(len(pairs) // MOST_COMPARED, 1)]
        )
    except OSError:
        return False
