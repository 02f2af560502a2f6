"""Where rows come from: the store, or an engine that computes them from images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl_research.features.engines import Engine
from tl_research.features.extraction import ImageViews, run_batches, view_pixels
from tl_research.features.shared_fill import SharedFill
from tl_research.features.store import FeatureStore
from tl_research.system.progress import bar

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule


class DtypeRangeError(ValueError):
    """The numbers of a row do not fit in its type: float16 ends at 65504, and a row whose largest number is below 6e-5
    would lose digits."""


@dataclass(frozen=True)
class RowSource:
    """Rows of type `row`, from the store if it has them, else from an engine. Rows are rounded as soon as they are
    computed, so that those from a store are the same, bit for bit."""

    store: FeatureStore | None
    engine: Engine
    data: DataModule
    image_size: int
    row: np.dtype
    threads: int

    def read(self, items: ImageViews, advance: Callable[[int], None]) -> tuple[np.ndarray, int]:
        """Return the rows of `items`, `(len(items), ...)`, and how many of them were computed, and stored, now.

        Raises:
            DtypeRangeError: a row does not fit in its type; such a row is not stored.
        """
        _, first, inverse = np.unique(items.digests, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.ravel()
        order = np.argsort(first)  # in the order of the items, not of their digests
        rank = np.argsort(order)
        first, inverse = first[order], rank[inverse]
        rows = np.empty(len(first), self.row)
        found = np.zeros(len(first), bool)
        if self.store is not None:
            self.store.refresh_if_due()
            found = self.store.read(items.digests[first], rows)
        advance(len(items) - int(np.sum(~found)))
        with SharedFill(self.store, items.digests[first], rows, np.flatnonzero(~found), advance) as fill:
            computed = self._compute(items, first, fill, advance)
        return rows[inverse], computed

    def _compute(self, items: ImageViews, first: np.ndarray, fill: SharedFill, advance: Callable[[int], None]) -> int:
        """Compute the rows that `fill` lacks and no other process has claimed, and return their number."""

        def load(position: int) -> np.ndarray:
            item = first[position]
            return view_pixels(self.data, int(items.indices[item]), self.image_size, int(items.views[item]))

        count = 0
        while len(fill.left):
            with closing(run_batches(self.engine, load, fill.batches(), self.image_size, self.threads)) as batches:
                for positions, features in batches:
                    fill.put(positions, round_to(self.row.base, features))
                    count += len(positions)
                    advance(len(positions))
            fill.wait()
        return count


@dataclass(frozen=True)
class PartSources:
    """The rows of the parts of a network, side by side; most networks have one part."""

    parts: Sequence[RowSource]

    @property
    def widths(self) -> list[int]:
        """The number of features of each part."""
        return [part.row.shape[-1] for part in self.parts]

    @property
    def is_writable(self) -> bool:
        """Whether all rows can be stored."""
        return all(part.store is not None and not part.store.broken for part in self.parts)

    def refresh(self) -> None:
        """Look for rows that other processes have stored."""
        for part in self.parts:
            if part.store is not None:
                part.store.refresh()

    def look_up(self, items: ImageViews) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of `items` as far as all parts are stored, and for which they are, `(len(items),)` bool."""
        rows = [np.empty(len(items), part.row) for part in self.parts]
        found = [
            part.store.read(items.digests, own) if part.store is not None else np.zeros(len(items), bool)
            for part, own in zip(self.parts, rows, strict=True)
        ]
        return _side_by_side(rows), np.all(found, axis=0)

    def read(self, items: ImageViews, advance: Callable[[int], None]) -> tuple[np.ndarray, int]:
        """Do `RowSource.read` for each part; the number is of rows of parts."""
        rows, computed = zip(*(part.read(items, advance) for part in self.parts), strict=True)
        return _side_by_side(rows), sum(computed)

    @contextmanager
    def filling(self, num_images: int) -> Iterator[Callable[[int], None]]:
        """Show one progress bar, and write one shard a store, for all rows that are read inside. Yields a function that
        advances the bar."""
        try:
            with bar() as progress:
                task = progress.add_task("features", total=num_images * len(self.parts))
                yield lambda count: progress.advance(task, count)
        finally:
            for part in self.parts:
                if part.store is not None:
                    part.store.close()


def _side_by_side(rows: Sequence[np.ndarray]) -> np.ndarray:
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-1)


def round_to(dtype: np.dtype, features: np.ndarray) -> np.ndarray:
    """Round features, float32, to a type. Raises `DtypeRangeError` if they do not fit in it."""
    if dtype == features.dtype:
        return features
    limits = np.finfo(dtype)
    largest = np.abs(features).reshape(len(features), -1).max(axis=1)
    unfit = largest[(largest > limits.max) | ((largest < limits.tiny) & (largest > 0))]
    if len(unfit):
        raise DtypeRangeError(f"features up to {unfit[0]:.3g}: {dtype.name} is no type for them")
    return features.astype(dtype)
