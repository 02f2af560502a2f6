"""Read folders of images in whatever layout: which files belong to which class and split, and what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tl_research.data.class_names import clean_name, match_name, nearest_name, same_but_case
from tl_research.data.folder_scan import FolderNode, Scan, scan
from tl_research.data.labels_in_names import find_names
from tl_research.data.layout import EXPECTED, Layout, LayoutOptions, find_layout, quoted
from tl_research.errors import InputError

PLAIN = LayoutOptions()


@dataclass(frozen=True)
class ClassFolders:
    """Sorted image paths under a root by split and class, and the files that were ignored.

    `files["train"]["hot_dog"]` is a list of paths; a tree without splits has the single split `"all"`. `notes` and
    `warnings` are lines on what was made of the folder.
    """

    root: Path
    files: dict[str, dict[str, list[Path]]]
    ignored: list[Path]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    groups: Mapping[Path, str] = field(default_factory=dict)
    """The group of each image, where the source knows it."""

    @property
    def class_names(self) -> list[str]:
        """List the names of the classes, sorted."""
        return sorted({name for classes in self.files.values() for name in classes})


def read_class_folders(root: Path, key: str = "data.root", options: LayoutOptions = PLAIN) -> ClassFolders:
    """List the images of a folder; docs/data.md shows each layout.

    Raises:
        InputError: the folder is missing or has no images, it has only one class, a class is in test alone, or a table
            beside the images contradicts the folders. The message names the folder and what is expected.
    """
    root = root.expanduser()
    _demand_folder(root, key)
    found = scan(root, key)
    by_name = options.label_by
    layout = find_names(found.tree, options, key, by_name) if by_name else find_layout(found.tree, options, key)
    files = _files_by_class(layout, options)
    _note_passed_over(layout, found)
    used = {path for classes in files.values() for paths in classes.values() for path in paths}
    ignored = [*_unused(found.tree, used), *found.copies]
    return ClassFolders(root, files, ignored, tuple(layout.notes), tuple(layout.warnings))


def _demand_folder(root: Path, key: str) -> None:
    try:
        problem = None if root.is_dir() else "is a file" if root.exists() else "does not exist"
    except (OSError, ValueError) as error:
        problem = f"cannot be a folder ({getattr(error, 'strerror', None) or error})"
    if problem:
        raise InputError(f"{key}={root}: {problem}; {EXPECTED}")


def _files_by_class(layout: Layout, options: LayoutOptions) -> dict[str, dict[str, list[Path]]]:
    """Give each class one name in all splits: the one it has among the training images, or among the `known`."""
    first = next(iter(layout.files))
    known = list(options.known) or sorted({clean_name(name) for name, _ in layout.files[first]})
    for name in known:
        alike = [other for other in same_but_case(name, known) if other > name]
        if alike:
            layout.warnings.append(f"'{name}' and '{alike[0]}' differ in case alone, and are two classes")
    if len(known) < 2:
        raise InputError(f"{layout.key}: one class only, '{known[0]}', in {layout.root}; {EXPECTED}")
    files: dict[str, dict[str, list[Path]]] = {}
    for split, found in layout.files.items():
        classes: dict[str, list[Path]] = {}
        for folder, paths in found:
            matched = match_name(folder, known)
            if matched is None:
                raise _unknown(layout, split, clean_name(folder), known, options)
            classes.setdefault(matched, []).extend(paths)
        files[split] = {name: sorted(classes[name]) for name in sorted(classes)}
        missing = [name for name in known if name not in classes]
        if missing and not options.known:
            layout.notes.append(f"no images in {split}/ of {quoted(missing)}")
    return files


def _unknown(layout: Layout, split: str, name: str, known: list[str], options: LayoutOptions) -> InputError:
    nearest = nearest_name(name, known)
    if options.known:
        return InputError(
            f"{layout.root}: the run has no class '{name}'; its nearest is '{nearest}', of {quoted(known)}"
        )
    return InputError(
        f"{layout.key}={layout.root}: class '{name}' is in {split}/ alone; the nearest in train/ is '{nearest}'. "
        f"Rename the folder, or put images of '{name}' in train/"
    )


def _note_passed_over(layout: Layout, found: Scan) -> None:
    for what, paths in (
        ("hidden or system file(s) and folder(s), or runs of this program,", found.junk),
        ("folder(s) with a copy of what lies around them", found.copies),
    ):
        if paths:
            layout.notes.append(f"{len(paths)} {what} passed over, such as {layout.below(paths[0])}")


def _unused(node: FolderNode, used: set[Path]) -> Iterator[Path]:
    """Yield files that no class has; of a folder without any that one has, the folder."""
    yield from (path for path in node.files if path not in used)
    for folder in node.folders:
        if any(path in used for inner in folder.walk() for path in inner.files):
            yield from _unused(folder, used)
        else:
            yield folder.path
