"""Hold ordered examples with labels and splits, and stream them in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tl_research.data.augment.augment import Augment, augmented_pixels
from tl_research.data.data_check import DataCheck
from tl_research.data.decode import Resize, UndecodableError, decode_pixels, read_bytes
from tl_research.data.file_index import Inspection
from tl_research.data.loader import Batch, PixelCache, Prefetcher, numbered_batches, one_hot
from tl_research.data.pixel_range import AS_STORED, DeepValues, PixelRange
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
    pixel_range: PixelRange = AS_STORED
    values: Sequence[DeepValues | None] = ()
    """The values of each image with more than 8 bits a channel, None for others; empty if there is none."""
    groups: np.ndarray | None = None
    """`groups[i]` is the group of `paths[i]`, as defined by `data.group_by`."""
    alike: np.ndarray | None = None
    """Equal images, and files of one stem, have equal numbers here."""
    quarantined: Sequence[Inspection] = ()
    ignored: Sequence[Path] = field(default=())
    dataset: str = ""
    """A digest of all readable images with classes and split folders, however they are then split and thinned."""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    found: DataCheck = field(default_factory=DataCheck)
    """What the one reading of each file tells, of all readable images."""
    _pixel_cache: PixelCache = field(default_factory=PixelCache, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def indices(self, *splits: str) -> np.ndarray:
        """Return the indices of the examples in these splits, in order."""
        return np.flatnonzero(np.isin(self.split_of, splits))

    def kept_together(self, indices: np.ndarray) -> np.ndarray | None:
        """Return what folds of these images may not divide: the group of each, or the number that it shares with equal
        images; None if each stands alone."""
        if self.groups is not None:
            return self.groups[indices]
        alike = None if self.alike is None else self.alike[indices]
        return None if alike is None or len(np.unique(alike)) == len(alike) else alike

    def counts(self) -> dict[str, dict[str, int]]:
        """Count images by split and class: `counts()["train"]["hot_dog"]`."""
        return {
            split: {name: int(np.sum(self.labels[self.indices(split)] == i)) for i, name in enumerate(self.class_names)}
            for split in SPLITS
        }

    def row_digest(self, index: int) -> bytes:
        """Return the digest that features of an example are stored by: of its content and, if it has more than 8 bits a
        channel, of the range that becomes 0 to 255."""
        return self.pixel_range.digest(self.digests[index], self.values[index] if self.values else None)

    def pixels(self, index: int, image_size: int) -> np.ndarray:
        """Decode one example at the network's size: uint8 `(image_size, image_size, 3)`. Raises `InputError` if the
        file has changed since it was checked."""
        return self._decoded(index, lambda content: decode_pixels(content, image_size, self.resize, self.pixel_range))

    def augmented(self, index: int, image_size: int, draw_key: object) -> np.ndarray:
        """Decode and augment one example. The result depends only on the image, `augment` and `draw_key`, which is the
        number of a view or (seed, epoch)."""
        version = self.augment.digest(self.digests[index], draw_key)
        options = (self.resize, self.augment, version, self.pixel_range)
        return self._decoded(index, lambda content: augmented_pixels(content, image_size, *options))

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
