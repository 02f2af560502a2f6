"""Run images through an engine: decoding in parallel with inference, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl_research.features.engines import BATCH, Engine
from tl_research.features.store import Digests, as_digests

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

ORIGINAL = -1
"""The number of the view without augmentation."""


@dataclass(frozen=True)
class ImageViews:
    """Views of images: the indices of examples `(m,)`, the views `(m,)`, and the digests of their rows in the store
    `(m, 4)`."""

    indices: np.ndarray
    views: np.ndarray
    digests: Digests

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def of(cls, data: DataModule, indices: np.ndarray, view: int = ORIGINAL) -> ImageViews:
        """Select one view of some examples."""
        hashes = [
            data.row_digest(i) if view == ORIGINAL else data.augment.digest(data.row_digest(i), view)
            for i in map(int, indices)
        ]
        return cls(indices, np.full(len(indices), view), as_digests(hashes))

    def in_parts(self, size: int) -> Iterator[ImageViews]:
        """Yield consecutive parts of at most `size`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield ImageViews(self.indices[part], self.views[part], self.digests[part])

    @classmethod
    def joined(cls, parts: Sequence[ImageViews]) -> ImageViews:
        """Concatenate parts."""
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "views", "digests"))
        return cls(*columns)


def view_pixels(data: DataModule, index: int, image_size: int, view: int) -> np.ndarray:
    """Return one view of an example: uint8 `(image_size, image_size, 3)`."""
    return data.pixels(index, image_size) if view == ORIGINAL else data.augmented(index, image_size, view)


def in_batches(positions: np.ndarray) -> list[np.ndarray]:
    """Split positions `(n,)` into batches of `BATCH`; the last one may be smaller."""
    return np.split(positions, range(BATCH, len(positions), BATCH))


def run_batches(
    engine: Engine, load: Callable[[int], np.ndarray], batches: Iterable[np.ndarray], image_size: int, threads: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Run batches of positions through an engine and yield `(positions, rows)` in order.

    Each worker loads a batch (`load` returns uint8 `(s, s, 3)` for a position) and runs it, so that no core waits for
    another. There is one worker more than cores, so that no core idles while a worker waits for the engine, and at most
    two batches a worker are in memory.
    """

    def run(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.zeros((BATCH, image_size, image_size, 3), np.uint8)
        for row, position in enumerate(positions):
            pixels[row] = load(int(position))
        return positions, engine(pixels)[: len(positions)]

    running: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
    workers = threads + 1
    with ThreadPoolExecutor(workers) as pool:
        try:
            for positions in batches:
                running.append(pool.submit(run, positions))
                if len(running) >= 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
