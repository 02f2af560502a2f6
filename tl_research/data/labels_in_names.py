"""Find the class of each image in its file name, by a regular expression (`data.label_by`)."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tl_research.data.folder_scan import FolderNode
from tl_research.data.layout import Layout, LayoutOptions
from tl_research.data.split_folders import SplitName
from tl_research.errors import InputError


def find_names(tree: FolderNode, options: LayoutOptions, key: str, label_by: str) -> Layout:
    """Find the images of each class and split; folders count only as splits.

    The class is the first group of the expression, or all that it finds, without spaces, `_`, `-` and `.` at its ends
    (`Abyssinian_3.jpg`); where it finds nothing, images are passed
    over, and counted. Raises `InputError` if it finds nothing in any name.
    """
    layout = Layout(tree.path, key)
    for split, folder in _split_folders(tree, options, key).items():
        images, found = folder.all_images(), defaultdict[str, list[Path]](list)
        for path in images:
            found[_label(label_by, path.name)].append(path)
        unmatched = found.pop("", [])
        if not found and split in ("val", "test"):
            layout.note_unlabelled(folder)
            continue
        layout.files[split] = sorted(found.items())
        if not found:
            raise InputError(f"data.label_by={label_by}: it finds nothing in any file name in {folder.path}")
        if unmatched:
            layout.warnings.append(
                f"data.label_by={label_by}: it finds nothing in {len(unmatched)} file name(s), such as "
                f"{layout.below(unmatched[0])}: passed over"
            )
    return layout


def _label(label_by: str, name: str) -> str:
    match = re.search(label_by, name)
    return (match.group(1 if match.re.groups else 0) or "").strip(" _-.") if match else ""


def _split_folders(tree: FolderNode, options: LayoutOptions, key: str) -> dict[str, FolderNode]:
    node = tree
    while len(node.filled) == 1 and not node.images and not SplitName.of(node.filled[0].name):
        node = node.filled[0]
    splits = {}
    for split, given in options.dirs.items():
        folder = tree.find(Path(tree.path, given))
        if folder is None or not folder.has_images:
            option = f"{key.rpartition('.')[0]}.{split}_dir"
            raise InputError(f"{option}={given}: there is no such folder with images in {tree.path}")
        splits[split] = folder
    for folder in node.filled:
        if (word := SplitName.of(folder.name)) and not word.stem:
            splits.setdefault("test" if word.role == "held out" else word.role, folder)
    if "train" not in splits and not (splits and options.known):
        splits["train" if splits else "all"] = tree
    if "train" in splits:
        splits["train"] = splits["train"].without(*(folder for split, folder in splits.items() if split != "train"))
    return {split: splits[split] for split in ("all", "train", "val", "test") if split in splits}
