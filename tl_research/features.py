"""Features: what a frozen network makes of each image, computed once however many epochs, folds or heads follow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tl_research.engines import BATCH, Engine
from tl_research.progress import track

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule


def extract(
    engine: Engine, data: DataModule, indices: np.ndarray, image_size: int, *, threads: int, describe: str = "features"
) -> np.ndarray:
    """One pass of the images `indices` through an engine: float32 `(len(indices), d)`, in that order.

    Each thread decodes a batch and runs it, so that no core waits for another, and no more than a batch a thread is in
    memory.
    """

    def batch(start: int) -> np.ndarray:
        chosen = indices[start : start + BATCH]
        pixels = np.zeros((BATCH, image_size, image_size, 3), np.uint8)
        for row, index in enumerate(chosen):
            pixels[row] = data.pixels(int(index), image_size)
        return engine(pixels)[: len(chosen)]

    starts = range(0, len(indices), BATCH)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(track(pool.map(batch, starts), describe, total=len(starts))))
