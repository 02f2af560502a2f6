"""A pass of images through an engine: decoding beside inference, all cores busy, memory flat."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl_research.features.engines import BATCH, Engine
from tl_research.features.store import Digests, as_digests
from tl_research.system.progress import bar

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

ORIGINAL = -1
"""The view that is the image as it is."""


@dataclass(frozen=True)
class ImageViews:
    """Versions of images: the example's index, the view, and the digest that the version is stored under; `(m,)`,
    `(m,)`, `(m, 4)`."""

    indices: np.ndarray
    views: np.ndarray
    digests: Digests

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def of(cls, data: DataModule, indices: np.ndarray, view: int = ORIGINAL) -> ImageViews:
        """The same view of some examples."""
        hashes = [
            data.digests[i] if view == ORIGINAL else data.augment.digest(data.digests[i], view)
            for i in map(int, indices)
        ]
        return cls(indices, np.full(len(indices), view), as_digests(hashes))

    def in_parts(self, size: int) -> Iterator[ImageViews]:
        """The same, so many at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield ImageViews(self.indices[part], self.views[part], self.digests[part])

    @classmethod
    def joined(cls, parts: Sequence[ImageViews]) -> ImageViews:
        """All of these, one after the other."""
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "views", "digests"))
        return cls(*columns)


def view_pixels(data: DataModule, index: int, image_size: int, view: int) -> np.ndarray:
    """One view of an example: uint8 `(image_size, image_size, 3)`."""
    return data.pixels(index, image_size) if view == ORIGINAL else data.augmented(index, image_size, view)


def in_batches(places: np.ndarray) -> list[np.ndarray]:
    """The places `(n,)` in batches of `BATCH`, the last one as it comes."""
    return np.split(places, range(BATCH, len(places), BATCH))


def run_batches(
    engine: Engine, load: Callable[[int], np.ndarray], batches: Iterator[np.ndarray], image_size: int, threads: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Runs batches of places through an engine and yields `(places, rows)` as they are done, in no particular order.

    Each worker loads a batch (`load` gives uint8 `(s, s, 3)` for a place) and runs it, so that no core waits for
    another; one worker more than cores, so that none idles while the engine waits for its turn or the pass ends. No
    more than two batches a worker are in memory.
    """

    def run(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.zeros((BATCH, image_size, image_size, 3), np.uint8)
        for row, place in enumerate(places):
            pixels[row] = load(int(place))
        return places, engine(pixels)[: len(places)]

    running: set[Future[tuple[np.ndarray, np.ndarray]]] = set()
    workers = threads + 1
    with ThreadPoolExecutor(workers) as pool:
        try:
            for places in batches:
                running.add(pool.submit(run, places))
                if len(running) >= 2 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in running:
                future.cancel()


def extract_features(
    engine: Engine,
    data: DataModule,
    indices: np.ndarray,
    image_size: int,
    *,
    threads: int,
    describe: str = "features",
    view: int = ORIGINAL,
) -> np.ndarray:
    """One pass of one view of the images `indices` through an engine: float32 `(len(indices), d)`, in that order.
    Nothing is looked up or kept."""

    def load(place: int) -> np.ndarray:
        return view_pixels(data, int(indices[place]), image_size, view)

    batches = iter(in_batches(np.arange(len(indices))))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with bar() as progress, closing(run_batches(engine, load, batches, image_size, threads)) as done:
        task = progress.add_task(describe, total=len(indices))
        for places, values in done:
            found.append((places, values))
            progress.advance(task, len(places))
    rows = np.empty((len(indices), found[0][1].shape[1]), np.float32)
    for places, values in found:
        rows[places] = values
    return rows
