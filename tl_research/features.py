"""Features: what a frozen network makes of each image, computed once however many epochs, folds or heads follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tl_research.engines import BATCH, keras_engine
from tl_research.progress import bar

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule


def extract(
    network: keras.Model, data: DataModule, indices: np.ndarray, *, threads: int, describe: str = "features"
) -> np.ndarray:
    """One pass of the images `indices` through a network: float32 `(len(indices), d)`, in that order."""
    engine = keras_engine(network)
    size = network.input_shape[1]
    rows = np.empty((len(indices), network.output_shape[-1]), np.float32)
    with bar() as progress:
        task = progress.add_task(describe, total=len(indices))
        done = 0
        for batch in _batches(lambda i: data.pixels(i, size), indices, (size, size, 3), threads):
            count = min(BATCH, len(indices) - done)
            rows[done : done + count] = engine(batch)[:count]
            done += count
            progress.update(task, completed=done)
    return rows


def _batches(
    read: Callable[[int], np.ndarray], indices: np.ndarray, shape: tuple[int, ...], threads: int
) -> Iterator[np.ndarray]:
    """Padded batches of decoded images; three of them are decoded ahead while the engine runs, never more."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[list[Future[np.ndarray]]] = []
        starts = iter(range(0, len(indices), BATCH))

        def submit() -> None:
            start = next(starts, None)
            if start is not None:
                waiting.append([pool.submit(read, int(i)) for i in indices[start : start + BATCH]])

        for _ in range(3):
            submit()
        while waiting:
            batch = np.zeros((BATCH, *shape), np.uint8)
            for row, future in enumerate(waiting.pop(0)):
                batch[row] = future.result()
            submit()
            yield batch
