"""Fill rows that a store lacks, together with other processes that fill the same store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from tl_research.features.engines import BATCH
from tl_research.features.extraction import in_batches
from tl_research.features.row_claims import RowClaims
from tl_research.features.store import Digests, FeatureStore

log = logging.getLogger(__name__)

TELL_AFTER = 60.0  # seconds: the other process may have been stopped, and not ended
PAUSE = 0.05  # seconds between two looks into the store for rows that others are computing


@dataclass
class SharedFill:
    """The rows `(n, ...)` of `digests` `(n, 4)`; `left` are the positions that are neither filled nor in a batch yet.
    `advance` is called with the number of rows that other processes have computed."""

    store: FeatureStore | None
    digests: Digests
    rows: np.ndarray
    left: np.ndarray
    advance: Callable[[int], None]

    def __post_init__(self) -> None:
        self.claims = RowClaims(self.store.folder) if self.store else None
        self._waiting_since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        if self.claims is not None:
            self.claims.close()
            self.claims = None

    def batches(self) -> Iterator[np.ndarray]:
        """Yield positions for this process to compute, until other processes have claimed all that are left."""
        while len(self.left):
            if self.claims is None or self.store is None or self.store.broken:
                # Other processes will not find the rows that this one computes: it computes all, without claims.
                self._release()
                batches, self.left = in_batches(self.left), self.left[:0]
                yield from batches
                return
            claimed = self.claims.take(self.digests[self.left], BATCH)
            if claimed is None:
                self._read_stored()
                continue
            if not len(claimed):
                return
            positions, self.left = self.left[claimed], np.delete(self.left, claimed)
            yield positions
            self._waiting_since = time.monotonic()

    def put(self, positions: np.ndarray, rows: np.ndarray) -> None:
        """Fill in rows that this process has computed, and store them."""
        self.rows[positions] = rows
        if self.store is not None:
            self.store.append(self.digests[positions], rows)

    def wait(self) -> None:
        """Give other processes a moment, and read the rows that they have stored."""
        if len(self.left) and self.store is not None:
            if time.monotonic() - self._waiting_since > TELL_AFTER:
                log.warning("waiting for %d features that another process is computing", len(self.left))
                self._waiting_since = time.monotonic()
            time.sleep(max(PAUSE, 10 * self.store.look_seconds))
            self._read_stored()

    def _read_stored(self) -> None:
        if self.store is not None:
            self.store.refresh()
            rows = np.empty((len(self.left), *self.rows.shape[1:]), self.rows.dtype)
            found = self.store.read(self.digests[self.left], rows)
            self.rows[self.left[found]] = rows[found]
            self.left = self.left[~found]
            self.advance(int(np.sum(found)))
