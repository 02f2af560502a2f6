"""Find out how a folder is laid out: which of its folders are splits, and which are classes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tl_research.data.class_names import clean_name, match_name, same_but_case
from tl_research.data.folder_scan import FolderNode
from tl_research.data.label_table import demand_agreement, find_table
from tl_research.data.split_folders import SplitFolders, SplitName, find_splits, labelled_level
from tl_research.errors import InputError

EXPECTED = (
    "expected train/CLASS/*.jpg and test/CLASS/*.jpg (val/ too if you like), or CLASS/*.jpg with two or more classes"
)
Named = list[tuple[str, FolderNode]]
"""Class folders, each with its name."""
MOST_CLASSES = 50
"""More folders in class folders than these look like groups, not like classes."""


@dataclass(frozen=True)
class LayoutOptions:
    """How to read a folder: `dirs` names the folders of some splits, `label_by` is a regular expression that finds the
    class in a file's name. With `grouped`, folders in class folders are known to be groups. Where the classes are
    `known`, a folder may have one of them alone, but no other."""

    dirs: Mapping[str, str] = field(default_factory=dict)
    label_by: str | None = None
    grouped: bool = False
    known: Sequence[str] = ()


@dataclass
class Layout:
    """What a folder was taken for: the images of each class folder by split, `all` if there are none, and lines about
    it."""

    root: Path
    key: str
    files: dict[str, list[tuple[str, list[Path]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def below(self, path: Path) -> str:
        """Give a path below the root, for a line; the root itself by its name."""
        return path.relative_to(self.root).as_posix() if path != self.root else path.name

    def note_unlabelled(self, folder: FolderNode) -> None:
        """Say that a folder's images have no labels, and how to predict them."""
        self.notes.append(
            f"{self.below(folder.path)}/ has {len(folder.all_images())} image(s) without labels; to predict them: "
            f"python -m tl_research predict RUN {shlex.quote(str(folder.path))}"
        )


def find_layout(tree: FolderNode, options: LayoutOptions, key: str) -> Layout:
    """Take folders for classes: find the images of each class and split. Raises `InputError` if there are none."""
    layout = Layout(tree.path, key)
    node, splits = _level(tree, options, key)
    levels = splits.labelled if splits else {"all": node}
    folders = {split: _class_folders(layout, split, level, tree, options) for split, level in levels.items()}
    if splits:
        _note_splits(layout, node, splits)
    else:
        folders = _splits_in_classes(layout, folders["all"]) or folders
        _demand_no_splits(layout, folders.get("all", []))
    layout.files = {split: [(name, inner.all_images()) for name, inner in found] for split, found in folders.items()}
    if not (options.known or "train" in options.dirs):
        demand_agreement(tree, [pair for found in layout.files.values() for pair in found], key)
    _note_depth(layout, [folder for found in folders.values() for folder in found], grouped=options.grouped)
    return layout


def quoted(names: Sequence[str], most: int = 5) -> str:
    """List names for a line, the first few in full."""
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _level(node: FolderNode, options: LayoutOptions, key: str) -> tuple[FolderNode, SplitFolders | None]:
    """Look through folders that hold one folder alone, down to the splits or the class folders."""
    dirs = options.dirs
    while True:
        splits = find_splits(node, dirs, key, options.known)
        only = node.filled[0] if len(node.filled) == 1 and not node.images else None
        if splits or only is None or not only.filled or match_name(only.name, options.known):
            return node, splits
        node, dirs = only, {}


def _class_folders(layout: Layout, split: str, level: FolderNode, tree: FolderNode, options: LayoutOptions) -> Named:
    """List the class folders in a folder, by name, without those that repeat their siblings."""
    images = level.images or [path for folder in level.filled for path in folder.images]
    table = find_table(tree, images) if len(level.filled) < 2 else None
    advice = EXPECTED + (f"; {table} names the images: data=csv reads it" if table else "")
    if not level.filled:
        held = f"found {len(level.files)} file(s) and no folders" if level.files else "found nothing"
        if level.folders:
            held = f"no images in {quoted([folder.name for folder in level.folders])}"
        raise InputError(f"{layout.key}: {held} in {level.path}; {advice}")
    empty = [folder.name for folder in level.folders if not folder.has_images]
    if empty:
        layout.notes.append(f"no images in {quoted(empty)} of {layout.below(level.path)}/: passed over")
    folders = [folder for folder in level.filled if not _repeats(layout, folder, level)]
    if len(folders) == 1 and split in ("all", "train") and not options.known:
        inner = folders[0].filled
        hint = (
            f". If {quoted([f.name for f in inner])} are the classes, use data.root={folders[0].path}" if inner else ""
        )
        raise InputError(f"{layout.key}: one class only, '{folders[0].name}', in {level.path}; {advice}{hint}")
    return [(folder.name, folder) for folder in folders]


def _repeats(layout: Layout, folder: FolderNode, level: FolderNode) -> bool:
    """Return whether a folder holds folders of the same names as its siblings; then it is no class."""
    siblings = [other.name for other in level.filled if other is not folder]
    inner = labelled_level(folder)
    names = [] if inner is None else [other.name for other in inner.filled]
    if len(names) < 2 or not all(same_but_case(name, siblings) for name in names):
        return False
    layout.warnings.append(
        f"{layout.below(folder.path)}/ holds the same folders as there are beside it ({quoted(names)}), so it is no "
        f"class: passed over"
    )
    return True


def _note_splits(layout: Layout, node: FolderNode, splits: SplitFolders) -> None:
    """Say which folders were taken for splits where this is not plain, and what lies beside them."""
    places = {split: layout.below(level.path) for split, level in splits.labelled.items()}
    if any(place.lower() != split for split, place in places.items()):
        layout.notes.append("splits: " + ", ".join(f"{split} is {place}/" for split, place in places.items()))
    for unlabelled in splits.unlabelled:
        layout.note_unlabelled(unlabelled)
    taken = [*splits.labelled.values(), *splits.unlabelled]
    for folder in node.filled:
        if not any(other.path.is_relative_to(folder.path) or folder.path.is_relative_to(other.path) for other in taken):
            layout.warnings.append(
                f"{layout.below(folder.path)}/ is none of the splits: passed over, with {len(folder.all_images())} "
                f"image(s). If it is one, name it with data.train_dir, data.val_dir or data.test_dir"
            )


def _splits_in_classes(layout: Layout, folders: Named) -> dict[str, Named] | None:
    """Read `CLASS/train` and `CLASS/test`; None if not every class folder holds splits alone."""
    crossed: dict[str, Named] = {"train": [], "val": [], "test": []}
    for name, folder in folders:
        for inner in folder.filled:
            split = SplitName.of(inner.name)
            if split is None or split.stem or folder.images or inner.filled:
                return None
            crossed["test" if split.role == "held out" else split.role].append((name, inner))
    if {name for name, _ in crossed["train"]} != {name for name, _ in folders}:
        return None
    layout.notes.append(f"splits are in the class folders, such as {layout.below(crossed['train'][0][1].path)}/")
    return {split: found for split, found in crossed.items() if found}


def _demand_no_splits(layout: Layout, found: Named) -> None:
    """Refuse folders for classes that hold splits, or are splits without class folders."""
    split_like = [folder for _, folder in found if (split := SplitName.of(folder.name)) and not split.stem]
    roles = {split.role for folder in split_like if (split := SplitName.of(folder.name))}
    if {"train"} < roles:
        folder = split_like[0]
        raise InputError(
            f"{layout.key}: found {len(folder.images)} file(s) and no folders in {folder.path}; {EXPECTED}. Where file "
            f"names say the class: data.label_by='^([A-Za-z]+)'"
        )
    for folder in split_like:
        layout.warnings.append(
            f"{layout.below(folder.path)}/ is taken for a class; if it is a split, name it with data.train_dir, "
            f"data.val_dir or data.test_dir"
        )
    for _, folder in found:
        names = [SplitName.of(inner.name) for inner in folder.filled if labelled_level(inner)]
        if any(name and name.role == "train" and not name.stem for name in names):
            raise InputError(
                f"{layout.key}: {folder.path} holds splits ({quoted([inner.name for inner in folder.filled])}) and is "
                f"no class; use data.root={folder.path}"
            )


def _note_depth(layout: Layout, folders: Named, *, grouped: bool) -> None:
    """Say that images lie deeper than their class folder; warn if the folders in it look like classes, unless
    they are known to be groups."""
    inner = {folder.path: (name, [other.name for other in folder.filled]) for name, folder in folders if folder.filled}
    if not inner:
        return
    first, (class_name, names) = next(iter(inner.items()))
    hint = "" if grouped else ". If these folders are patients or series, data.group_by keeps them together"
    layout.notes.append(
        f"images lie deeper than their class folder, such as in {layout.below(first)}/{names[0]}/: they belong to "
        f"class '{class_name}'{hint}"
    )
    if grouped:
        return
    sets = [{clean_name(name).casefold() for name in names} for _, names in inner.values()]
    numbered = any(re.search(r"\d", name) for name in set[str]().union(*sets))
    repeated = len(sets) == len(folders) > 1 and len(sets[0]) > 1 and all(names == sets[0] for names in sets)
    if repeated or (not numbered and 1 < len(set[str]().union(*sets)) <= MOST_CLASSES):
        layout.warnings.append(
            f"the folders in the class folders look like classes themselves ({quoted(sorted(sets[0]))}), and are not: "
            f"the classes are {quoted(sorted({name for name, _ in folders}))}"
        )
