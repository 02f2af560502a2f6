"""The features of a data set: the output of a frozen network for each image, computed once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from tl_research.data import decode
from tl_research.data.file_index import FileIndex
from tl_research.features.engines import BATCH, EngineName, describe_engine, lazy_engine
from tl_research.features.extraction import ORIGINAL, ImageViews
from tl_research.features.row_source import PartSources, RowSource
from tl_research.features.store import FeatureStore
from tl_research.features.store_admin import prune_store
from tl_research.models.combined import parts_of
from tl_research.recipe import Positive, recipe

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule

log = logging.getLogger(__name__)

CHUNK = 8192  # images looked up at a time where rows are only stored, so that memory does not grow with the data
CHUNK_BYTES = 2**28  # bytes of rows looked up at a time, for the same reason where a row is a feature map
HELD_GB = 1.0  # size of the rows that `load` keeps in memory; larger ones are read from the store


@recipe
class Features:
    """Where features are stored and how many augmented views of an image there are.

    `store` is a folder, null for none; the least recently used rows are removed when it holds more than `max_gb`.
    `views` is the number of augmented versions of each training image that the head learns from, `test_views` the
    number that is averaged in testing. The feature maps of frozen blocks are stored up to `max_map_gb`.
    """

    store: str | None = None
    views: Positive | None = None
    test_views: Positive | None = None
    max_gb: Annotated[float, Field(gt=0)] | None = 20.0
    max_map_gb: Annotated[float, Field(ge=0)] = 4.0

    @property
    def root(self) -> Path | None:
        """The store's folder."""
        return Path(self.store).expanduser() if self.store else None

    def file_index(self) -> FileIndex:
        """Return the facts that earlier runs have stored about files."""
        return FileIndex(self.root / "files" if self.root else None)

    def prune(self, since: float) -> None:
        """Remove rows until the store is no larger than `max_gb`, except those used after `since`."""
        if self.root is None or self.max_gb is None or not self.root.is_dir():
            return
        freed = prune_store(self.root, self.max_gb * 1e9, unused_since=since)
        if freed:
            log.info("features.max_gb=%g: %.2f GB of features not used for long removed", self.max_gb, freed / 1e9)


@dataclass
class FeatureTable:
    """The features of a data set under one frozen network, looked up or computed at their first use.

    A row is the network's output for an image, a vector `(d,)` or a feature map `(h, w, c)`, kept as `row_type`:
    float32, or float16, which takes half the room.

    `computed` counts the rows that passed through the engine, `hit` the images that needed no pass: rows from the
    store, and images with the same content as another.

    Methods that compute rows raise `DtypeRangeError` if a row does not fit in `row_type`.
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
    _rows: dict[int, np.ndarray] = field(init=False, default_factory=dict)
    _known: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.row = np.dtype((self.row_type, tuple(self.network.output_shape[1:])))
        self.image_size = int(self.network.input_shape[1])

    @cached_property
    def source(self) -> PartSources:
        """The store and the engine behind the table, for each part of a combined network. The store is opened at the
        first use: a run that trains on images alone has none."""
        return PartSources([_open_source(self, part) for part in parts_of(self.network)])

    def after_training(self) -> FeatureTable:
        """Return a table of the same network with its present weights, and without a store: no other run will have
        these weights."""
        return replace(self, options=replace(self.options, store=None))

    def maps(self, prefix: keras.Model) -> FeatureTable:
        """Return a table of the feature maps that the lower part of the network computes, in 16 bits."""
        return replace(self, network=prefix, row_type="<f2", computed=0, hit=0)

    def size_gb(self, num_rows: int) -> float:
        """Return the size of this many rows, in memory as in the store."""
        return num_rows * self.row.itemsize / 1e9

    def get(self, indices: np.ndarray, view: int = ORIGINAL) -> np.ndarray:
        """Return the features of one view of these examples, in that order: `(n, d)` or `(n, h, w, c)`."""
        self.ensure([(indices, view)])
        return self._rows[view][indices]

    def load(self, indices: np.ndarray, views: Sequence[int] = (ORIGINAL,)) -> None:
        """Make these examples available to `get_batch`: in memory up to `HELD_GB`, otherwise in the store. Without a
        store that can be written they are kept in memory whatever their size: check `size_gb` before."""
        wanted = [(indices, view) for view in views if not self.in_memory(indices, view)]
        fits = self.size_gb(len(indices) * len(wanted)) <= HELD_GB
        if not fits and self.source.is_writable:
            self.ensure_stored(indices, [view for _, view in wanted])
            if self.source.is_writable:
                self.source.refresh()
                return
        self.ensure(wanted)

    def get_batch(self, indices: np.ndarray) -> np.ndarray:
        """Return the features of a batch after `load`, without keeping rows of the store in memory. Rows that the store
        has lost since are computed again."""
        if self.in_memory(indices):
            return self._rows[ORIGINAL][indices]
        rows, found = self.source.look_up(ImageViews.of(self.data, indices, ORIGINAL))
        if not found.all():
            with self.source.filling(int(np.sum(~found))) as advance:
                rows[~found] = self._read(ImageViews.of(self.data, indices[~found], ORIGINAL), advance)
        return rows

    def in_memory(self, indices: np.ndarray, view: int = ORIGINAL) -> bool:
        """Return whether all these rows are in memory."""
        return view in self._known and bool(self._known[view][indices].all())

    def ensure(self, wanted: Sequence[tuple[np.ndarray, int]]) -> None:
        """Look up or compute the rows of `(indices, view)` pairs that are not in memory yet, in one pass."""
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
        with self.source.filling(len(items)) as advance:
            for part in items.in_parts(_chunk_size(self.row)):
                rows = self._read(part, advance)
                for view in set(map(int, part.views)):
                    chosen = part.views == view
                    self._rows[view][part.indices[chosen]] = rows[chosen]
                    self._known[view][part.indices[chosen]] = True

    def ensure_stored(self, indices: np.ndarray, views: Sequence[int] = (ORIGINAL,)) -> None:
        """Compute the rows of these examples that the store lacks, without keeping them in memory."""
        step = min(CHUNK, _chunk_size(self.row))
        with self.source.filling(len(indices) * len(views)) as advance:
            for start in range(0, len(indices), step):
                part = indices[start : start + step]
                self._read(ImageViews.joined([ImageViews.of(self.data, part, view) for view in views]), advance)

    def _read(self, items: ImageViews, advance: Callable[[int], None]) -> np.ndarray:
        rows, computed = self.source.read(items, advance)
        self.computed += computed
        self.hit += len(items) * len(self.source.parts) - computed
        return rows


def _open_source(table: FeatureTable, part: keras.Model) -> RowSource:
    row = np.dtype((table.row_type, tuple(part.output_shape[1:])))
    engine = lazy_engine(table.engine, part, table.threads)
    return RowSource(_open_store(table, part, row), engine, table.data, table.image_size, row, table.threads)


def _open_store(table: FeatureTable, network: keras.Model, row: np.dtype) -> FeatureStore | None:
    if table.options.root is None:
        return None
    about = {
        "network": network_digest(network),
        "image_size": table.image_size,
        "resize": table.data.resize,
        "decoder": decode.version(),
        **describe_engine(table.engine, table.threads),
    }
    return FeatureStore(table.options.root, about, row, {"note": table.note})


def _chunk_size(row: np.dtype) -> int:
    """Return the number of rows to read at a time: as many as `CHUNK_BYTES` hold, in whole batches."""
    return max(CHUNK_BYTES // row.itemsize // BATCH, 1) * BATCH


def network_digest(network: keras.Model) -> str:
    """Return the SHA-256 of a network's architecture and weights."""
    # Which layers are frozen at the moment changes nothing in the network's output.
    architecture = network.to_json().replace('"trainable": false', '"trainable": true')
    hashed = hashlib.sha256(architecture.encode())
    for variable in network.weights:
        hashed.update(np.ascontiguousarray(variable.numpy()).data)
    return hashed.hexdigest()
