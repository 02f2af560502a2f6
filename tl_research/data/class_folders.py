"""Read folders of images: `train/` and `test/` with one folder per class, or class folders alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tl_research.data.inspection import is_image_name, visible
from tl_research.errors import InputError

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
EXPECTED = (
    "expected train/CLASS/*.jpg and test/CLASS/*.jpg (val/ too if you like), or CLASS/*.jpg with two or more classes"
)


@dataclass(frozen=True)
class ClassFolders:
    """Sorted image paths under a root by split and class, and the files that were ignored.

    `files["train"]["hot_dog"]` is a list of paths; a tree without splits has the single split `"all"`.
    """

    root: Path
    files: dict[str, dict[str, list[Path]]]
    ignored: list[Path]
    groups: Mapping[Path, str] = field(default_factory=dict)
    """The group of each image, where the source knows it."""

    @property
    def class_names(self) -> list[str]:
        """List the names of the class folders, sorted."""
        return sorted({name for classes in self.files.values() for name in classes})


def read_class_folders(root: Path, key: str = "data.root") -> ClassFolders:
    """List a class-folder tree without opening images.

    Raises:
        InputError: the folder is missing or empty, has only one class, has folders inside class folders, has no
            images, or its splits have different classes. The message names the folder and what is expected.
    """
    root = root.expanduser()
    _demand_folder(root, key)
    entries = visible(_list(root, key))
    folders = [p for p in entries if p.is_dir()]
    splits = _splits(root, folders, key)
    ignored: list[Path] = []
    if splits:
        files = {split: _classes(folder, key, ignored) for split, folder in splits.items()}
        ignored += [p for p in entries if p not in splits.values()]
    else:
        files = {"all": _classes(root, key, ignored)}
    tree = ClassFolders(root, files, ignored)
    _demand_same_classes(tree, splits, key)
    return tree


def _demand_folder(root: Path, key: str) -> None:
    try:
        problem = None if root.is_dir() else "is a file" if root.exists() else "does not exist"
    except (OSError, ValueError) as error:
        problem = f"cannot be a folder ({getattr(error, 'strerror', None) or error})"
    if problem:
        raise InputError(f"{key}={root}: {problem}; {EXPECTED}")


def _splits(root: Path, folders: list[Path], key: str) -> dict[str, Path]:
    """Map split names to their folders, in order; empty if `root` contains the classes directly.

    A lone `train/` or `valid/` that contains images, not folders, is a class, as in trains against buses.
    """
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise InputError(f"{key}={root}: found both {splits[split].name}/ and {folder.name}/; keep one of them")
        if split:
            splits[split] = folder
    with_folders = [p for p in splits.values() if any(entry.is_dir() for entry in visible(_list(p, key)))]
    if "train" in splits and (len(splits) > 1 or with_folders):
        return {split: splits[split] for split in ("train", "val", "test") if split in splits}
    if with_folders:
        raise InputError(f"{key}={root}: found {with_folders[0].name}/ but no train/; {EXPECTED}")
    return {}


def _list(folder: Path, key: str) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{key}: no permission to read the folder {folder}")
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{key}: the folder {folder} cannot be read ({error.strerror})") from None


def _classes(folder: Path, key: str, ignored: list[Path]) -> dict[str, list[Path]]:
    entries = visible(_list(folder, key))
    classes = {p.name: _images(p, key, ignored) for p in entries if p.is_dir()}
    loose = [p for p in entries if not p.is_dir()]
    if not classes:
        contents = f"{len(loose)} file(s) and no folders" if loose else "nothing"
        raise InputError(f"{key}: found {contents} in {folder}; {EXPECTED}")
    ignored += loose
    empty = [name for name, paths in classes.items() if not paths]
    if len(empty) == len(classes):
        raise InputError(f"{key}: no images in {_some(empty)} under {folder}; {EXPECTED}")
    if empty:
        raise InputError(f"{key}: no images in {folder / empty[0]}; put some there or remove the folder")
    if len(classes) == 1:
        raise InputError(f"{key}: one class only, '{next(iter(classes))}', in {folder}; {EXPECTED}")
    return classes


def _images(folder: Path, key: str, ignored: list[Path]) -> list[Path]:
    entries = visible(_list(folder, key))
    nested = [p.name for p in entries if p.is_dir()]
    if nested:
        raise InputError(
            f"{key}: found folders in the class folder {folder} ({_some(nested)}); {EXPECTED}. "
            f"If these are the classes, use data.root={folder}"
        )
    images: list[Path] = []
    for entry in entries:
        (images if is_image_name(entry) else ignored).append(entry)
    return images


def _demand_same_classes(tree: ClassFolders, folders: dict[str, Path], key: str) -> None:
    for split, classes in tree.files.items():
        missing = [name for name in tree.class_names if name not in classes]
        if missing:
            raise InputError(
                f"{key}={tree.root}: {folders[split]} has no folder for {_some(missing)}, which another split has; "
                f"expected the same classes in every split"
            )


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
