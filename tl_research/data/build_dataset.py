"""Make a `DataModule` of a folder tree: check every file, set unreadable ones aside, and split the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tl_research.data.augment.augment import Augment
from tl_research.data.class_folders import ClassFolders
from tl_research.data.data_check import DataCheck
from tl_research.data.datamodule import DataModule
from tl_research.data.decode import Resize
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.data.inspection import find_equal_pixels, inspect_all, without_unscalable
from tl_research.data.pixel_range import Bits, PixelRange, Window, choose_range
from tl_research.data.quality import join_equal
from tl_research.data.splits import demand_apart, groups_of, held_fold, hold_out, hold_out_groups, subset
from tl_research.errors import InputError

log = logging.getLogger(__name__)

MOST_NAMED = 5
FOLLOWS = "pair"  # stands, while splits are cut, for a file that goes where the first of its stem or an equal one goes


def split_dataset(
    tree: ClassFolders,
    *,
    val: float,
    test: float,
    split_seed: int,
    max_bad: float,
    fold: int | None = None,
    folds: int | None = None,
    repeat: int = 0,
    fraction: float = 1.0,
    per_class: int | None = None,
    group_by: str | None = None,
    allow_leaks: bool = False,
    min_images: int = 3,
    resize: Resize = "squash",
    augment: Augment | None = None,
    bits: Bits = "auto",
    window: Window | None = None,
    index: FileIndex | None = None,
) -> DataModule:
    """Check every file that `index` does not know, set unreadable ones aside, and split the rest.

    Splits that exist as folders are kept. Otherwise `test` is cut from all images and `val` from the training images;
    with `fold` of `folds`, `val` is that part of all images outside `test`, divided anew for each `repeat`. `fraction`
    or `per_class` then reduces the training images. Equal images, files of one stem, and groups, which `group_by` finds
    in the paths or in a list, are never divided between splits that are cut. Classes of fewer than `min_images` are
    left out; smaller ones that are kept stay whole.

    Raises:
        InputError: more than `max_bad` of the files are unreadable, fewer than two classes are left, or split folders
            divide a group or, unless `allow_leaks`, share equal images.
    """
    checked, tree = _without_small(_check(tree, (0, 1), max_bad, index, window), tree, min_images)
    checked = replace(checked, inspections=find_equal_pixels(checked.inspections, index))
    names = tree.class_names
    labels, split_of = checked.labels, checked.split_of
    found = DataCheck.of(tree.root, checked.inspections, labels, names, split_of)
    if not allow_leaks:
        found.demand_no_leaks()
    first = found.first_alike(pooled=folds is not None)
    groups = _groups(tree, found, group_by, first, allow_leaks)
    split_of[first != np.arange(len(first))] = FOLLOWS
    keep = 1 if "val" in tree.files or not (val or folds) else 2
    _cut(split_of, labels, "test", test, split_seed, names, keep=keep, groups=groups)
    if folds is not None and fold is not None:
        pool = np.flatnonzero(~np.isin(split_of, ("test", FOLLOWS)))
        split_of[pool] = "train"
        within = None if groups is None else groups[pool]
        held = held_fold(labels[pool], fold, folds, split_seed, names=names, groups=within, repeat=repeat)
        split_of[pool[held]] = "val"
    else:
        _cut(split_of, labels, "val", val, split_seed, names, keep=1, groups=groups)
    split_of[split_of == "all"] = "train"
    split_of = split_of[first]
    values = [each.values for each in checked.inspections]
    in_train = [values[i] for i in np.flatnonzero(split_of == "train").tolist()]
    pixel_range = choose_range(bits, window, in_train, values)
    used = _used(split_of, labels, fraction, per_class, split_seed, names)
    return replace(checked.module(tree, split_of, used, resize, augment, pixel_range, groups, first), found=found)


def _groups(
    tree: ClassFolders, found: DataCheck, group_by: str | None, first: np.ndarray, allow_leaks: bool
) -> np.ndarray | None:
    """Return the group of each image, joined where images of two are alike; None if there are no groups."""
    if group_by is not None:
        groups = groups_of(found.paths, tree.root, group_by)
    elif tree.groups:
        groups = np.array([tree.groups[path] for path in found.paths])
    else:
        return None
    try:
        demand_apart(np.array(found.given), groups)
    except InputError as error:
        if not allow_leaks:
            raise
        log.warning("%s", str(error).partition("; a result")[0])
    return groups[join_equal(groups.tolist(), first.tolist())]


def unsplit_dataset(
    tree: ClassFolders,
    part: tuple[int, int] = (0, 1),
    *,
    max_bad: float,
    resize: Resize = "squash",
    augment: Augment | None = None,
    bits: Bits = "auto",
    window: Window | None = None,
    index: FileIndex | None = None,
) -> DataModule:
    """Check the files of a tree, or of part `i` of `n`, and label all as `train`, for uses that need no splits. Files
    of other parts are not opened. Raises `InputError` if more than `max_bad` are unreadable."""
    checked = _check(tree, part, max_bad, index, window)
    checked.split_of[:] = "train"
    values = [inspection.values for inspection in checked.inspections]
    if part[1] > 1 and bits == "auto" and window is None and any(found and not found.is_float for found in values):
        raise InputError(
            f"data.bits=auto: the images of shard {part[0]}/{part[1]} have 16 bits, and the whole data set "
            "decides how many are in use; give data.bits, as a run on all images states it"
        )
    pixel_range = choose_range(bits, window, values)
    return checked.module(tree, checked.split_of, np.arange(len(checked.labels)), resize, augment, pixel_range)


def labelled_dataset(
    tree: ClassFolders,
    class_names: Sequence[str],
    *,
    max_bad: float,
    resize: Resize = "squash",
    window: Window | None = None,
) -> DataModule:
    """Check the files of a tree for evaluation: labels are positions in `class_names`, splits those of the folder,
    `all` for one without. Raises `InputError` if more than `max_bad` are unreadable."""
    unknown = sorted({*tree.class_names} - {*class_names})
    if unknown:
        raise InputError(f"{tree.root}: the run has no class '{unknown[0]}'; it has {', '.join(class_names)}")
    checked = _check(tree, (0, 1), max_bad, None, window)
    places = [list(class_names).index(name) for name in tree.class_names]
    checked.labels[:] = np.array(places, dtype=np.int64)[checked.labels]
    module = checked.module(
        tree, checked.split_of, np.arange(len(checked.labels)), resize, None, PixelRange(window=window)
    )
    return replace(module, class_names=class_names)


@dataclass(frozen=True)
class _Checked:
    """A tree's readable files, in order, and its unreadable ones."""

    inspections: Sequence[Inspection]
    labels: np.ndarray
    split_of: np.ndarray
    bad: Sequence[Inspection]
    dataset: str

    def module(
        self,
        tree: ClassFolders,
        split_of: np.ndarray,
        used: np.ndarray,
        resize: Resize,
        augment: Augment | None,
        pixel_range: PixelRange,
        groups: np.ndarray | None = None,
        alike: np.ndarray | None = None,
    ) -> DataModule:
        values = [self.inspections[i].values for i in used]
        return DataModule(
            root=tree.root,
            paths=[self.inspections[i].path for i in used],
            labels=self.labels[used],
            split_of=split_of[used],
            class_names=tree.class_names,
            sizes=np.array([self.inspections[i].size for i in used]).reshape(-1, 2),
            digests=[self.inspections[i].digest for i in used],
            resize=resize,
            augment=augment or Augment(),
            pixel_range=pixel_range,
            values=values if any(values) else (),
            groups=None if groups is None else groups[used],
            alike=None if alike is None else alike[used],
            quarantined=self.bad,
            ignored=tree.ignored,
            dataset=self.dataset,
            notes=tree.notes,
            warnings=tree.warnings,
        )


def _check(
    tree: ClassFolders, part: tuple[int, int], max_bad: float, index: FileIndex | None, window: Window | None
) -> _Checked:
    listed = [
        (path, label, split)
        for split, classes in tree.files.items()
        for label, name in enumerate(tree.class_names)
        for path in classes.get(name, [])
    ][part[0] :: part[1]]
    inspections = inspect_all([path for path, _, _ in listed], index)
    if window is None:
        inspections = [without_unscalable(inspection) for inspection in inspections]
    bad = [inspection for inspection in inspections if inspection.reason]
    _demand_few(bad, len(listed), max_bad)
    good = [i for i, inspection in enumerate(inspections) if not inspection.reason]
    content = sorted(f"{inspections[i].digest.hex()} {listed[i][1]} {listed[i][2]}" for i in good)
    return _Checked(
        inspections=[inspections[i] for i in good],
        labels=np.array([listed[i][1] for i in good], dtype=np.int64),
        split_of=np.array([listed[i][2] for i in good], dtype="<U5"),
        bad=bad,
        dataset=hashlib.sha256("\n".join([*tree.class_names, *content]).encode("utf-8", "surrogateescape")).hexdigest()[
            :12
        ],
    )


def _cut(
    split_of: np.ndarray,
    labels: np.ndarray,
    split: str,
    share: float,
    seed: int,
    names: list[str],
    keep: int,
    groups: np.ndarray | None = None,
) -> None:
    """Assign a share of the images to `split`, in place, unless it exists as a folder."""
    if share and split not in split_of:
        pool = np.flatnonzero(np.isin(split_of, ("all", "train")))
        key = f"data.{split}"
        if groups is None:
            held = hold_out(labels[pool], share, seed, num_classes=len(names), keep=keep)
        else:
            held = hold_out_groups(labels[pool], groups[pool], share, seed, names=names, key=key)
        split_of[pool[held]] = split


def _used(
    split_of: np.ndarray, labels: np.ndarray, fraction: float, per_class: int | None, seed: int, names: list[str]
) -> np.ndarray:
    """Return the indices of all examples except training images dropped by `fraction` or `per_class`."""
    train = np.flatnonzero(split_of == "train")
    chosen = train[subset(labels[train], fraction, per_class, seed, names=names)]
    return np.sort(np.concatenate([np.flatnonzero(split_of != "train"), chosen]))


def _without_small(checked: _Checked, tree: ClassFolders, min_images: int) -> tuple[_Checked, ClassFolders]:
    """Leave out classes of fewer than `min_images` readable images, or of none to train on."""
    names = tree.class_names
    counts = np.bincount(checked.labels, minlength=len(names))
    trained = np.bincount(checked.labels[np.isin(checked.split_of, ("all", "train"))], minlength=len(names))
    kept = np.flatnonzero((counts >= min_images) & (trained > 0))
    if len(kept) == len(names):
        return checked, tree
    small = ", ".join(f"'{names[i]}' ({counts[i]})" for i in range(len(names)) if i not in kept)
    if len(kept) < 2:
        raise InputError(
            f"data.root={tree.root}: fewer than two classes have the {min_images} readable images that data.min_images "
            f"asks for; too few: {small}. Add images, or lower data.min_images"
        )
    line = f"fewer than {min_images} readable images (data.min_images), or none to train on: {small}: left out"
    of_kept = np.flatnonzero(np.isin(checked.labels, kept))
    files = {
        split: {name: paths for name, paths in classes.items() if name in {names[i] for i in kept}}
        for split, classes in tree.files.items()
    }
    smaller = replace(
        checked,
        inspections=[checked.inspections[i] for i in of_kept.tolist()],
        labels=np.searchsorted(kept, checked.labels[of_kept]),
        split_of=checked.split_of[of_kept],
    )
    return smaller, replace(tree, files=files, warnings=(*tree.warnings, line))


def _demand_few(all_bad: Sequence[Inspection], total: int, max_bad: float) -> None:
    if all_bad and len(all_bad) == total:
        raise InputError(f"none of {total} images can be read; the first: {all_bad[0].path} ({all_bad[0].reason})")
    bad = [inspection for inspection in all_bad if not inspection.is_unread]
    if len(bad) > max_bad * total:
        names = ", ".join(f"{each.path} ({each.reason})" for each in bad[:MOST_NAMED])
        more = f" and {len(bad) - MOST_NAMED} more" if bad[MOST_NAMED:] else ""
        raise InputError(
            f"{len(bad)} of {total} images cannot be read, more than data.max_bad={max_bad:g} allows: {names}{more}. "
            "Mend them, or raise data.max_bad; python -m tl_research check data=... lists all"
        )
