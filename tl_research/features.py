"""Features: what a frozen network makes of each image, computed once in the lifetime of a data set."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from tl_research import engines
from tl_research.data import decode
from tl_research.data.file_index import FileIndex
from tl_research.engines import BATCH, Engine, EngineName
from tl_research.feature_store import Digests, FeatureStore, as_digests
from tl_research.passes import PLAIN, in_batches, passes, view_pixels
from tl_research.progress import bar
from tl_research.recipe import Positive, recipe
from tl_research.stock import prune

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule

log = logging.getLogger(__name__)

CHUNK = 8192  # images looked up at a time where rows are only to be stored, so that memory does not grow with the data


@recipe
class Features:
    """Where features are kept and how many augmented views of an image there are.

    `store` is a folder, null for none; least recently used rows go when it holds more than `max_gb`. `views` is how
    many augmented versions of each training image the head learns from, `test_views` how many are averaged in testing.
    """

    store: str | None = None
    views: Positive | None = None
    test_views: Positive | None = None
    max_gb: Annotated[float, Field(gt=0)] | None = None

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
        freed = prune(self.root, self.max_gb * 1e9, unused_since=since)
        if freed:
            log.info("features.max_gb=%g: %.2f GB of features not used for long removed", self.max_gb, freed / 1e9)


@dataclass(frozen=True)
class Items:
    """Versions of images: the example's index, the view, and the digest that the version is stored under; `(m,)`,
    `(m,)`, `(m, 4)`."""

    indices: np.ndarray
    views: np.ndarray
    digests: Digests

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def of(cls, data: DataModule, indices: np.ndarray, view: int = PLAIN) -> Items:
        """The same view of some examples."""
        hashes = [
            data.digests[i] if view == PLAIN else data.augment.digest(data.digests[i], view) for i in map(int, indices)
        ]
        return cls(indices, np.full(len(indices), view), as_digests(hashes))

    @classmethod
    def joined(cls, parts: Sequence[Items]) -> Items:
        """All of these, one after the other."""
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "views", "digests"))
        return cls(*columns)


@dataclass
class FeatureTable:
    """The features of a data set under one frozen network, looked up or computed when they are first asked for.

    `computed` counts the rows that passed through the engine, `hit` the images that needed no pass: rows found in the
    store, and images whose content is another's.
    """

    network: keras.Model
    data: DataModule
    options: Features
    engine: EngineName
    threads: int
    note: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    hit: int = 0
    _rows: dict[int, np.ndarray] = field(default_factory=dict)
    _known: dict[int, np.ndarray] = field(default_factory=dict)
    _built: Engine | None = None

    def __post_init__(self) -> None:
        self.width = int(self.network.output_shape[-1])
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
            **engines.about(self.engine, self.threads),
        }
        return FeatureStore(self.options.root, about, np.dtype(("<f4", (self.width,))), {"note": self.note})

    def after_training(self) -> FeatureTable:
        """A table of the same network as it is now, its weights having moved. Nobody else will ever have these weights,
        so it keeps nothing on disk."""
        options = replace(self.options, store=None)
        return replace(self, options=options, _rows={}, _known={}, _built=None)

    def rows(self, indices: np.ndarray, view: int = PLAIN) -> np.ndarray:
        """Features of one view of these examples, in that order: float32 `(n, width)`."""
        self.prepare([(indices, view)])
        return self._rows[view][indices]

    def prepare(self, wanted: Sequence[tuple[np.ndarray, int]]) -> None:
        """Looks up or computes what is not there yet of `(indices, view)` pairs, all of it in one pass."""
        parts = []
        for indices, view in wanted:
            if view not in self._rows:
                self._rows[view] = np.empty((len(self.data), self.width), np.float32)
                self._known[view] = np.zeros(len(self.data), bool)
            missing = indices[~self._known[view][indices]]
            if len(missing):
                parts.append(Items.of(self.data, missing, view))
        if not parts:
            return
        items = Items.joined(parts)
        with self._writing(len(items)) as advance:
            rows = self._answer(items, advance)
        for part, values in zip(parts, np.split(rows, np.cumsum([len(part) for part in parts])[:-1]), strict=True):
            view = int(part.views[0])
            self._rows[view][part.indices] = values
            self._known[view][part.indices] = True

    def fill(self, indices: np.ndarray, views: Sequence[int] = (PLAIN,)) -> None:
        """Has the store hold these examples' features, without holding them in memory."""
        with self._writing(len(indices) * len(views)) as advance:
            for start in range(0, len(indices), CHUNK):
                part = indices[start : start + CHUNK]
                self._answer(Items.joined([Items.of(self.data, part, view) for view in views]), advance)

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

    def _answer(self, items: Items, advance: Callable[[int], None]) -> np.ndarray:
        """Rows `(len(items), width)`: from the store, or computed and put there."""
        _, first, inverse = np.unique(items.digests, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.ravel()
        order = np.argsort(first)  # as they came, not as their digests sort
        rank = np.argsort(order)
        first, inverse = first[order], rank[inverse]
        rows = np.empty((len(first), self.width), np.float32)
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
        self, items: Items, first: np.ndarray, missing: np.ndarray, rows: np.ndarray, advance: Callable[[int], None]
    ) -> int:
        if not len(missing):
            return 0
        if self._built is None:
            self._built = engines.build(self.engine, self.network, self.threads)

        def load(place: int) -> np.ndarray:
            item = first[place]
            return view_pixels(self.data, int(items.indices[item]), self.image_size, int(items.views[item]))

        count = 0
        digests = items.digests[first]
        plan = self._plan(missing, digests, rows, advance)
        with closing(passes(self._built, load, plan, self.image_size, self.threads)) as done:
            for places, values in done:
                rows[places] = values
                count += len(places)
                advance(len(places))
                if self.store is not None:
                    self.store.append(digests[places], values)
        return count

    def _plan(
        self, missing: np.ndarray, digests: Digests, rows: np.ndarray, advance: Callable[[int], None]
    ) -> Iterator[np.ndarray]:
        """Batches of the places that are to be computed. Now and then it asks whether another process has been there:
        each begins elsewhere, so that several fill one store together instead of all computing all of it."""
        if self.store is None:
            yield from in_batches(missing)
            return
        start = time.time_ns() // 1000 % len(missing)
        left = np.concatenate([missing[start:], missing[:start]])
        while len(left):
            yield left[:BATCH]
            left = left[BATCH:]
            if self.store.refresh_if_due():
                listed = left[self.store.has(digests[left])]
                held = np.empty((len(listed), *rows.shape[1:]), rows.dtype)
                there = self.store.read(digests[listed], held)
                rows[listed[there]] = held[there]
                advance(int(np.sum(there)))
                left = left[~np.isin(left, listed[there])]


def network_digest(network: keras.Model) -> str:
    """SHA-256 of a network's architecture and weights, wherever they came from."""
    hashed = hashlib.sha256(network.to_json().encode())
    for variable in network.weights:
        hashed.update(np.ascontiguousarray(variable.numpy()).data)
    return hashed.hexdigest()
