"""Iterate over epochs in batches: choose examples and their order, and load them in threads a few batches ahead.

Plain threads and NumPy, not `tf.data`: Pillow releases the interpreter's lock while decoding, an image takes 2.5 ms of
a core instead of 3.7 by `tf.numpy_function` (JPEGs of 400 pixels), errors are raised unchanged, and the first batch of
an epoch is an argument, not a state.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import numpy as np

from tl_research.system.hardware import cores

Batch = tuple[np.ndarray, np.ndarray]
"""Inputs and targets: float32 `(b, k)`, rows that sum to 1."""

T = TypeVar("T")
B = TypeVar("B")

AHEAD = 3  # batches; more would only take memory: loading too slow for three is too slow for ten
CACHE_BYTES = 2**29  # 3,500 images of 224 pixels; several jobs may run on one machine


def numbered_batches(
    indices: np.ndarray, batch_size: int, *, epoch: int = 0, skip: int = 0, seed: int | None = None
) -> list[tuple[int, np.ndarray]]:
    """List an epoch's batches from number `skip` on as `(number, indices (b,))`: in order, or with a seed shuffled, as
    a pure function of (seed, epoch)."""
    chosen = indices if seed is None else np.random.default_rng((seed, epoch)).permutation(indices)
    starts = range(0, len(chosen), batch_size)
    return [(number, chosen[start : start + batch_size]) for number, start in enumerate(starts)][skip:]


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Convert labels `(n,)` to targets, float32 `(n, num_classes)`."""
    targets = np.zeros((len(labels), num_classes), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    return targets


def rows_epoch(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    batch_size: int,
    *,
    epoch: int = 0,
    skip: int = 0,
    seed: int | None = None,
) -> Generator[Batch, None, None]:
    """Stream an epoch of rows in memory: `(features float32 (b, ...), targets float32 (b, k))`."""
    for _, batch in numbered_batches(np.arange(len(labels)), batch_size, epoch=epoch, skip=skip, seed=seed):
        yield np.asarray(features[batch], np.float32), one_hot(labels[batch], num_classes)


class Prefetcher(Iterator[B], Generic[T, B]):
    """Iterate over batches in order while threads load `AHEAD` batches in advance, starting at once. An error in `load`
    or `join` is raised in place of its batch. `close()` stops the threads; it is called at the end and on an error.
    Without it they finish what was submitted, and wait."""

    def __init__(
        self,
        load: Callable[[int], T],
        join: Callable[[int, np.ndarray, list[T]], B],
        batches: Sequence[tuple[int, np.ndarray]],
        threads: int | None = None,
    ) -> None:
        """Start loading: `load(index)` returns an item, `join(number, indices, items)` a batch; both in threads."""
        self._load, self._join = load, join
        self._left = deque(batches)
        self._waiting: deque[Future[B]] = deque()
        self._pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="load")
        self._submit()

    def _submit(self) -> None:
        while self._left and len(self._waiting) < AHEAD:
            number, indices = self._left.popleft()
            items = [self._pool.submit(self._load, int(index)) for index in indices]
            # Threads work in order: when one starts this, all of its items are done or in progress.
            self._waiting.append(self._pool.submit(self._joined, number, indices, items))

    def _joined(self, number: int, indices: np.ndarray, items: list[Future[T]]) -> B:
        return self._join(number, indices, [item.result() for item in items])

    def __next__(self) -> B:
        if not self._waiting:
            self.close()
            raise StopIteration
        try:
            batch = self._waiting.popleft().result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def close(self) -> None:
        """Stop the threads, each at the latest when it has finished its current item."""
        self._left.clear()
        self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PixelCache:
    """Cache decoded pixels up to a size limit. Nothing is evicted: in repeated passes over one set, least-recently-used
    eviction would always drop an image before its next use."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.room = max_bytes
        self._pixels: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, index: int, image_size: int, load: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """Return `load(index, image_size)`, cached if there is room."""
        pixels = self._pixels.get((index, image_size))
        if pixels is None:
            pixels = load(index, image_size)
            with self._lock:
                if pixels.nbytes <= self.room and (index, image_size) not in self._pixels:
                    self._pixels[index, image_size] = pixels
                    self.room -= pixels.nbytes
        return pixels
