"""Epochs as iterators of batches: which examples, in which order, loaded by threads a little ahead of who iterates.

Plain threads and NumPy, not `tf.data`: Pillow lets go of the interpreter while it decodes, an image costs 2.5 ms of a
core instead of 3.7 by `tf.numpy_function` (JPEGs of 400 pixels), an error is raised as it is, and where an epoch is to
begin is an argument, not a state.
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
"""What goes in, and its targets: float32 `(b, k)`, rows that sum to 1."""

T = TypeVar("T")
B = TypeVar("B")

AHEAD = 3  # batches; more would only fill memory, for who cannot keep up by three cannot keep up by ten
KEPT_BYTES = 2**29  # 3,500 images of 224 pixels; several jobs may run on one machine


def numbered_batches(
    indices: np.ndarray, batch_size: int, *, epoch: int = 0, skip: int = 0, seed: int | None = None
) -> list[tuple[int, np.ndarray]]:
    """`(number, indices (b,))` of an epoch's batches from number `skip` on: in order, or shuffled where there is a
    seed, as a pure function of (seed, epoch)."""
    chosen = indices if seed is None else np.random.default_rng((seed, epoch)).permutation(indices)
    starts = range(0, len(chosen), batch_size)
    return [(number, chosen[start : start + batch_size]) for number, start in enumerate(starts)][skip:]


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Targets float32 `(n, num_classes)` of labels `(n,)`."""
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
    """`DataModule.epoch` of rows that are in memory: `(features float32 (b, ...), targets float32 (b, k))`."""
    for _, batch in numbered_batches(np.arange(len(labels)), batch_size, epoch=epoch, skip=skip, seed=seed):
        yield np.asarray(features[batch], np.float32), one_hot(labels[batch], num_classes)


class Prefetcher(Iterator[B], Generic[T, B]):
    """Batches in their order, loaded by threads from now on, `AHEAD` of who iterates. An error in `load` or `join` is
    raised where its batch would have come. `close()`, which the end or an error calls, stops the threads; without it
    they load what is under way, and wait."""

    def __init__(
        self,
        load: Callable[[int], T],
        join: Callable[[int, np.ndarray, list[T]], B],
        batches: Sequence[tuple[int, np.ndarray]],
        threads: int | None = None,
    ) -> None:
        """`load` makes one item of an index, `join(number, indices, items)` a batch; both are called in threads."""
        self._load, self._join = load, join
        self._left = deque(batches)
        self._waiting: deque[Future[B]] = deque()
        self._pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="load")
        self._submit()

    def _submit(self) -> None:
        while self._left and len(self._waiting) < AHEAD:
            number, indices = self._left.popleft()
            items = [self._pool.submit(self._load, int(index)) for index in indices]
            # Threads take their work in order: when one comes to this, all of its items are done or being done.
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
        """Stops the threads, at the latest when each has done the one thing that it is at."""
        self._left.clear()
        self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PixelCache:
    """Pixels that need not be decoded again, as long as there is room. Nothing is thrown out for others: of a set read
    from end to end again and again, those used last would always go before their turn comes."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.room = most_bytes
        self._pixels: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, index: int, image_size: int, load: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """What `load(index, image_size)` gives, or gave."""
        found = self._pixels.get((index, image_size))
        if found is None:
            found = load(index, image_size)
            with self._lock:
                if found.nbytes <= self.room and (index, image_size) not in self._pixels:
                    self._pixels[index, image_size] = found
                    self.room -= found.nbytes
        return found
