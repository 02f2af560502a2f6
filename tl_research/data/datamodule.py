"""Hold ordered examples with labels and splits, and stream them in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tl_research.data.augment.augment import Augment, augmented_pixels
from tl_research.data.class_folders import ClassFolders
from tl_research.data.decode import Resize, UndecodableError, decode_pixels, read_bytes
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.data.inspection import inspect_all
from tl_research.data.loader import Batch, PixelCache, Prefetcher, numbered_batches, one_hot
from tl_research.data.splits import demand_apart, groups_of, held_fold, hold_out, hold_out_groups, subset
from tl_research.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataModule:
    """Checked examples with their splits, in a fixed order: split folder, then class, then path.

    `labels[i]` is the index of `paths[i]`'s class in `class_names` (sorted by name), `split_of[i]` one of `SPLITS`,
    `digests[i]` the SHA-256 of the file's content.
    """

    root: Path
    paths: Sequence[Path]
    labels: np.ndarray
    split_of: np.ndarray
    class_names: Sequence[str]
    sizes: np.ndarray
    digests: Sequence[bytes]
    resize: Resize = "squash"
    augment: Augment = field(default_factory=Augment)
    groups: np.ndarray | None = None
    """`groups[i]` is the group of `paths[i]`, as defined by `data.group_by`."""
    quarantined: Sequence[Inspection] = ()
    ignored: Sequence[Path] = field(default=())
    dataset: str = ""
    """A digest of all readable images with classes and split folders, however they are then split and thinned."""
    _pixel_cache: PixelCache = field(default_factory=PixelCache, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def indices(self, *splits: str) -> np.ndarray:
        """Return the indices of the examples in these splits, in order."""
        return np.flatnonzero(np.isin(self.split_of, splits))

    def counts(self) -> dict[str, dict[str, int]]:
        """Count images by split and class: `counts()["train"]["hot_dog"]`."""
        return {
            split: {name: int(np.sum(self.labels[self.indices(split)] == i)) for i, name in enumerate(self.class_names)}
            for split in SPLITS
        }

    def pixels(self, index: int, image_size: int) -> np.ndarray:
        """Decode one example at the network's size: uint8 `(image_size, image_size, 3)`. Raises `InputError` if the
        file has changed since it was checked."""
        return self._decoded(index, lambda content: decode_pixels(content, image_size, self.resize))

    def augmented(self, index: int, image_size: int, draw_key: object) -> np.ndarray:
        """Decode and augment one example. The result depends only on the image, `augment` and `draw_key`, which is the
        number of a view or (seed, epoch)."""
        version = self.augment.digest(self.digests[index], draw_key)
        return self._decoded(
            index, lambda content: augmented_pixels(content, image_size, self.resize, self.augment, version)
        )

    def _decoded(self, index: int, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        path = self.paths[index]
        try:
            content = read_bytes(path)
            if hashlib.sha256(content).digest() != self.digests[index]:
                raise InputError(f"{path}: it has changed since the run began; run again")
            return decode(content)
        except UndecodableError as error:
            raise InputError(f"{path}: {error}; it was readable when the run began") from None

    def epoch(
        self,
        indices: np.ndarray,
        image_size: int,
        batch_size: int,
        *,
        epoch: int = 0,
        skip: int = 0,
        seed: int | None = None,
        threads: int | None = None,
    ) -> Prefetcher[np.ndarray, Batch]:
        """Stream one epoch from batch number `skip` on: `(pixels uint8 (b, s, s, 3), targets float32 (b, k))`. Threads
        decode a few batches ahead, starting now.

        With a `seed`, images are shuffled, augmented and mixed for training, as a pure function of (seed, epoch): batch
        k does not depend on `skip`. Without, images come in order and unchanged.
        """

        def load(index: int) -> np.ndarray:
            if seed is not None and self.augment.changes_images:
                return self.augmented(index, image_size, [seed, epoch])
            return self._pixel_cache.get(index, image_size, self.pixels)

        def join(number: int, batch: np.ndarray, images: list[np.ndarray]) -> Batch:
            pixels, targets = np.stack(images), one_hot(self.labels[batch], len(self.class_names))
            if seed is not None and self.augment.mixes:
                return self.augment.mix(pixels, targets, (seed, epoch, number))
            return pixels, targets

        batches = numbered_batches(indices, batch_size, epoch=epoch, skip=skip, seed=seed)
        return Prefetcher(load, join, batches, threads)


def split_dataset(
    tree: ClassFolders,
    *,
    val: float,
    test: float,
    split_seed: int,
    max_bad: float,
    fold: int | None = None,
    folds: int | None = None,
    fraction: float = 1.0,
    per_class: int | None = None,
    group_by: str | None = None,
    resize: Resize = "squash",
    augment: Augment | None = None,
    index: FileIndex | None = None,
) -> DataModule:
    """Check every file that `index` does not know, set unreadable ones aside, and split the rest.

    Splits that exist as folders are kept. Otherwise `test` is cut from all images and `val` from the training images;
    with `fold` of `folds`, `val` is that part of all images outside `test`. `fraction` or `per_class` then reduces the
    training images. Groups, found by `group_by` in the paths, are never divided between splits.

    Raises:
        InputError: more than `max_bad` of the files are unreadable, a class is too small for the splits, or split
            folders divide a group.
    """
    names = tree.class_names
    checked = _check(tree, (0, 1), max_bad, index)
    labels, split_of = checked.labels, checked.split_of
    groups = None
    if group_by is not None:
        groups = groups_of([inspection.path for inspection in checked.inspections], tree.root, group_by)
        demand_apart(split_of, groups)
    _demand_enough(tree, labels, split_of)
    _cut(split_of, labels, "test", test, split_seed, names, keep=1 if "val" in tree.files else 2, groups=groups)
    if folds is not None and fold is not None:
        pool = np.flatnonzero(split_of != "test")
        split_of[pool] = "train"
        within = None if groups is None else groups[pool]
        split_of[pool[held_fold(labels[pool], fold, folds, split_seed, names=names, groups=within)]] = "val"
    else:
        _cut(split_of, labels, "val", val, split_seed, names, keep=1, groups=groups)
    split_of[split_of == "all"] = "train"
    used = _used(split_of, labels, fraction, per_class, split_seed, names)
    return checked.module(tree, used, resize, augment, groups)


def unsplit_dataset(
    tree: ClassFolders,
    part: tuple[int, int] = (0, 1),
    *,
    max_bad: float,
    resize: Resize = "squash",
    augment: Augment | None = None,
    index: FileIndex | None = None,
) -> DataModule:
    """Check the files of a tree, or of part `i` of `n`, and label all as `train`, for uses that need no splits. Files
    of other parts are not opened. Raises `InputError` if more than `max_bad` are unreadable."""
    checked = _check(tree, part, max_bad, index)
    checked.split_of[:] = "train"
    return checked.module(tree, np.arange(len(checked.labels)), resize, augment)


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
        used: np.ndarray,
        resize: Resize,
        augment: Augment | None,
        groups: np.ndarray | None = None,
    ) -> DataModule:
        return DataModule(
            root=tree.root,
            paths=[self.inspections[i].path for i in used],
            labels=self.labels[used],
            split_of=self.split_of[used],
            class_names=tree.class_names,
            sizes=np.array([self.inspections[i].size for i in used]).reshape(-1, 2),
            digests=[self.inspections[i].digest for i in used],
            resize=resize,
            augment=augment or Augment(),
            groups=None if groups is None else groups[used],
            quarantined=self.bad,
            ignored=tree.ignored,
            dataset=self.dataset,
        )


def _check(tree: ClassFolders, part: tuple[int, int], max_bad: float, index: FileIndex | None) -> _Checked:
    listed = [
        (path, label, split)
        for split, classes in tree.files.items()
        for label, name in enumerate(tree.class_names)
        for path in classes[name]
    ][part[0] :: part[1]]
    inspections = inspect_all([path for path, _, _ in listed], index)
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
    if split not in split_of:
        pool = np.flatnonzero(np.isin(split_of, ("all", "train")))
        key = f"data.{split}"
        if groups is None:
            held = hold_out(labels[pool], share, seed, names=names, key=key, keep=keep)
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


def _demand_enough(tree: ClassFolders, labels: np.ndarray, split_of: np.ndarray) -> None:
    """Check that every class has an image in each split folder, and one for each split to be cut."""
    cut = [split for split in SPLITS if split not in tree.files]
    for index, name in enumerate(tree.class_names):
        for split in tree.files:
            count = int(np.sum((labels == index) & (split_of == split)))
            needed = [split] if split in ("val", "test") else sorted({"train", *cut}, key=SPLITS.index)
            if count < len(needed):
                where = tree.root / name if split == "all" else f"{tree.root} ({split})"
                raise InputError(
                    f"data.root={tree.root}: found {count} readable image(s) of class '{name}' in {where}; expected at "
                    f"least {len(needed)}, one each for {', '.join(needed)}. Add images, or leave the class out"
                )


def _demand_few(bad: Sequence[Inspection], total: int, max_bad: float) -> None:
    if len(bad) > max_bad * total:
        raise InputError(
            f"{len(bad)} of {total} images cannot be read, more than data.max_bad={max_bad:g} allows; "
            f"the first: {bad[0].path} ({bad[0].reason}). Mend them, or raise data.max_bad"
        )
