"""Features: what a frozen network makes of each image, computed once in the lifetime of a data set."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from tl_research.data import decode
from tl_research.data.file_index import FileIndex
from tl_research.features.engines import BATCH, Engine, EngineName, build_engine, describe_engine
from tl_research.features.extraction import ORIGINAL, ImageViews, run_batches, view_pixels
from tl_research.features.shared_fill import SharedFill
from tl_research.features.store import FeatureStore
from tl_research.features.store_admin import prune_store
from tl_research.recipe import Positive, recipe
from tl_research.system.progress import bar

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule

log = logging.getLogger(__name__)

CHUNK = 8192  # images looked up at a time where rows are only to be stored, so that memory does not grow with the data
CHUNK_BYTES = 2**28  # of rows, for the same reason where a row is a feature map
HELD_GB = 1.0  # rows that `load` keeps in memory; more are read from the store


@recipe
class Features:
    """Where features are kept and how many augmented views of an image there are.

    `store` is a folder, null for none; least recently used rows go when it holds more than `max_gb`. `views` is how
    many augmented versions of each training image the head learns from, `test_views` how many are averaged in testing.
    What frozen blocks make of all images is kept where it takes no more than `max_map_gb`.
    """

    store: str | None = None
    views: Positive | None = None
    test_views: Positive | None = None
    max_gb: Annotated[float, Field(gt=0)] | None = None
    max_map_gb: Annotated[float, Field(ge=0)] = 4.0

    @property
    def root(self) -> Path | None:
        """The store's folder."""
        return Path(self.store).expanduser() if self.store else None

    def file_index(self) -> FileIndex:
        """What is known of files from earlier runs; it lies in the store."""
        return FileIndex(self.root / "files" if self.root else None)

    def prune(self, since: float) -> None:
        """Keeps the store below `max_gb`, sparing what has been used since."""
        if self.root is None or self.max_gb is None or not self.root.is_dir():
            return
        freed = prune_store(self.root, self.max_gb * 1e9, unused_since=since)
        if freed:
            log.info("features.max_gb=%g: %.2f GB of features not used for long removed", self.max_gb, freed / 1e9)


class DtypeRangeError(ValueError):
    """A row's numbers do not fit in the type that rows are kept in: float16 ends at 65504, and a row whose largest is
    below 6e-5 would lose digits."""


@dataclass
class FeatureTable:
    """The features of a data set under one frozen network, looked up or computed when they are first asked for.

    A row is what the network gives for an image, a vector `(d,)` or a feature map `(h, w, c)`, kept as `row_type`:
    float32, or float16, which takes half the room. Rows are rounded as soon as they are computed, so that those that
    are found in a store are the same, bit for bit.

    `computed` counts the rows that passed through the engine, `hit` the images that needed no pass: rows found in the
    store, and images whose content is another's.

    Whatever computes rows raises `UnfitError` where they do not fit in `row_type`, with any store: such a row is never
    kept.
    """

    network: keras.Model
    data: DataModule
    options: Features
    engine: EngineName
    threads: int
    note: dict[str, str] = field(default_factory=dict)
    row_type: Literal["<f4", "<f2"] = "<f4"
    computed: int = 0
    hit: int = 0
    _rows: dict[int, np.ndarray] = field(default_factory=dict)
    _known: dict[int, np.ndarray] = field(default_factory=dict)
    _built: Engine | None = None
    _building: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.row = np.dtype((self.row_type, tuple(self.network.output_shape[1:])))
        self.image_size = int(self.network.input_shape[1])

    @cached_property
    def store(self) -> FeatureStore | None:
        """Where rows are kept, opened when the first are asked for: a run that trains on images alone never asks."""
        if self.options.root is None:
            return None
        about = {
            "network": network_digest(self.network),
            "image_size": self.image_size,
            "resize": self.data.resize,
            "decoder": decode.version(),
            **describe_engine(self.engine, self.threads),
        }
        return FeatureStore(self.options.root, about, self.row, {"note": self.note})

    def after_training(self) -> FeatureTable:
        """A table of the same network as it is now, its weights having moved. Nobody else will ever have these weights,
        so it keeps nothing on disk."""
        options = replace(self.options, store=None)
        return replace(self, options=options, _rows={}, _known={}, _built=None, _building=threading.Lock())

    def maps(self, prefix: keras.Model) -> FeatureTable:
        """A table of what the lower part of the network makes of the same images, in 16 bits."""
        return replace(
            self, network=prefix, row_type="<f2", computed=0, hit=0, _rows={}, _known={}, _built=None,
            _building=threading.Lock(),
        )  # fmt: skip

    def size_gb(self, num_rows: int) -> float:
        """What so many rows take, in memory as in the store."""
        return num_rows * self.row.itemsize / 1e9

    def get(self, indices: np.ndarray, view: int = ORIGINAL) -> np.ndarray:
        """Features of one view of these examples, in that order: `(n, d)` or `(n, h, w, c)`, of `row_type`."""
        self.ensure([(indices, view)])
        return self._rows[view][indices]

    def load(self, indices: np.ndarray, views: Sequence[int] = (ORIGINAL,)) -> None:
        """Make these examples available to `get_batch`: in memory up to `HELD_GB`, otherwise in the store. Without a
        store that can be written they are held in memory whatever their size: ask `size_gb` before."""
        wanted = [(indices, view) for view in views if not self._held(indices, view)]
        fits = self.size_gb(len(indices) * len(wanted)) <= HELD_GB
        if not fits and self.store is not None and not self.store.broken:
            self.ensure_stored(indices, [view for _, view in wanted])
            if not self.store.broken:
                self.store.refresh()
                return
        self.ensure(wanted)

    def get_batch(self, indices: np.ndarray, view: int = ORIGINAL) -> np.ndarray:
        """`get`, for a batch of what `load` has made ready, and nothing that was read from the store stays in memory.
        What has meanwhile been lost there is computed anew."""
        if self._held(indices, view):
            return self._rows[view][indices]
        items = ImageViews.of(self.data, indices, view)
        rows = np.empty(len(items), self.row)
        found = self.store.read(items.digests, rows) if self.store is not None else np.zeros(len(items), bool)
        if not found.all():
            with self._writing(int(np.sum(~found))) as advance:
                rows[~found] = self._answer(ImageViews.of(self.data, indices[~found], view), advance)
        return rows

    def _held(self, indices: np.ndarray, view: int) -> bool:
        """Whether all these rows are in memory."""
        return view in self._known and bool(self._known[view][indices].all())

    def ensure(self, wanted: Sequence[tuple[np.ndarray, int]]) -> None:
        """Looks up or computes what is not there yet of `(indices, view)` pairs, all of it in one pass."""
        parts = []
        for indices, view in wanted:
            if view not in self._rows:
                self._rows[view] = np.empty(len(self.data), self.row)
                self._known[view] = np.zeros(len(self.data), bool)
            missing = indices[~self._known[view][indices]]
            if len(missing):
                parts.append(ImageViews.of(self.data, missing, view))
        if not parts:
            return
        items = ImageViews.joined(parts)
        with self._writing(len(items)) as advance:
            for some in items.in_parts(self._chunk):
                rows = self._answer(some, advance)
                for view in set(map(int, some.views)):
                    mine = some.views == view
                    self._rows[view][some.indices[mine]] = rows[mine]
                    self._known[view][some.indices[mine]] = True

    def ensure_stored(self, indices: np.ndarray, views: Sequence[int] = (ORIGINAL,)) -> None:
        """Has the store hold these examples' features, without holding them in memory."""
        step = min(CHUNK, self._chunk)
        with self._writing(len(indices) * len(views)) as advance:
            for start in range(0, len(indices), step):
                part = indices[start : start + step]
                self._answer(ImageViews.joined([ImageViews.of(self.data, part, view) for view in views]), advance)

    @property
    def _chunk(self) -> int:
        """How many rows are looked up and computed at a time: as many as `CHUNK_BYTES` hold, in whole batches."""
        return max(CHUNK_BYTES // self.row.itemsize // BATCH, 1) * BATCH

    @contextmanager
    def _writing(self, total: int) -> Iterator[Callable[[int], None]]:
        """One bar, and one shard for what is computed inside."""
        try:
            with bar() as progress:
                task = progress.add_task("features", total=total)
                yield lambda count: progress.advance(task, count)
        finally:
            if self.store is not None:
                self.store.close()

    def _answer(self, items: ImageViews, advance: Callable[[int], None]) -> np.ndarray:
        """Rows `(len(items), ...)`: from the store, or computed and put there."""
        _, first, inverse = np.unique(items.digests, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.ravel()
        order = np.argsort(first)  # as they came, not as their digests sort
        rank = np.argsort(order)
        first, inverse = first[order], rank[inverse]
        rows = np.empty(len(first), self.row)
        found = np.zeros(len(first), bool)
        if self.store is not None:
            self.store.refresh_if_due()
            found = self.store.read(items.digests[first], rows)
        advance(len(items) - int(np.sum(~found)))
        computed = self._compute(items, first, np.flatnonzero(~found), rows, advance)
        self.computed += computed
        self.hit += len(items) - computed
        return rows[inverse]

    def _compute(
        self,
        items: ImageViews,
        first: np.ndarray,
        missing: np.ndarray,
        rows: np.ndarray,
        advance: Callable[[int], None],
    ) -> int:
        def load(place: int) -> np.ndarray:
            item = first[place]
            return view_pixels(self.data, int(items.indices[item]), self.image_size, int(items.views[item]))

        count = 0
        with SharedFill(self.store, items.digests[first], rows, missing, advance) as filling:
            while len(filling.left):
                batches = filling.batches()
                with closing(run_batches(self._engine, load, batches, self.image_size, self.threads)) as done:
                    for places, features in done:
                        values = self._rounded(features)
                        rows[places] = values
                        count += len(places)
                        advance(len(places))
                        if self.store is not None:
                            self.store.append(filling.digests[places], values)
                filling.wait()
        return count

    def _rounded(self, features: np.ndarray) -> np.ndarray:
        """Features as the engine gives them, float32, as rows."""
        if self.row.base == features.dtype:
            return features
        limits = np.finfo(self.row.base)
        largest = np.abs(features).reshape(len(features), -1).max(axis=1)
        unfit = largest[(largest > limits.max) | ((largest < limits.tiny) & (largest > 0))]
        if len(unfit):
            raise DtypeRangeError(f"features up to {unfit[0]:.3g}: {self.row.base.name} is no type for them")
        return features.astype(self.row.base)

    def _engine(self, pixels: np.ndarray) -> np.ndarray:
        """The engine, built when the first batch wants it: other processes may have filled the store meanwhile."""
        with self._building:
            if self._built is None:
                self._built = build_engine(self.engine, self.network, self.threads)
        return self._built(pixels)


def network_digest(network: keras.Model) -> str:
    """SHA-256 of a network's architecture and weights, wherever they came from."""
    # What is frozen while it is asked changes nothing that the network gives.
    architecture = network.to_json().replace('"trainable": false', '"trainable": true')
    hashed = hashlib.sha256(architecture.encode())
    for variable in network.weights:
        hashed.update(np.ascontiguousarray(variable.numpy()).data)
    return hashed.hexdigest()
