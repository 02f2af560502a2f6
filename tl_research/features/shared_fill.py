"""Filling: rows that are missing from a store, until none is, together with whatever other processes fill it."""

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

TELL_AFTER = 60.0  # seconds: the other may have been stopped, and not ended
PAUSE = 0.05  # seconds between two looks for what others are about to finish


@dataclass
class SharedFill:
    """`left` are the places in `rows` `(n, width)` of `digests` `(n, 4)` that nobody has filled yet. `advance` is told
    how many others have filled."""

    store: FeatureStore | None
    digests: Digests
    rows: np.ndarray
    left: np.ndarray
    advance: Callable[[int], None]

    def __post_init__(self) -> None:
        self._claims = RowClaims(self.store.folder) if self.store else None
        self._waiting_since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if self._claims is not None:
            self._claims.close()
            self._claims = None

    def batches(self) -> Iterator[np.ndarray]:
        """Places to compute, until all that are left are other processes' to compute."""
        while len(self.left):
            if self._claims is None or self.store is None or self.store.broken:
                # What this process computes no other will find: it takes all, and lets others have what it claimed.
                self._give_up()
                batches, self.left = in_batches(self.left), self.left[:0]
                yield from batches
                return
            mine = self._claims.take(BATCH, self._look)
            if not len(mine):
                return
            places, self.left = self.left[mine], np.delete(self.left, mine)
            yield places
            self._waiting_since = time.monotonic()

    def wait(self) -> None:
        """Gives others a moment, and takes what they have finished."""
        if len(self.left) and self.store is not None:
            if time.monotonic() - self._waiting_since > TELL_AFTER:
                log.warning("waiting for %d features that another process is computing", len(self.left))
                self._waiting_since = time.monotonic()
            time.sleep(max(PAUSE, 10 * self.store.look_seconds))
            self._look(changed=True)

    def _look(self, changed: bool) -> Digests:
        """Digests of what is left, after a look into the store if it has changed."""
        if changed and self.store is not None:
            self.store.refresh()
            held = np.empty((len(self.left), *self.rows.shape[1:]), self.rows.dtype)
            there = self.store.read(self.digests[self.left], held)
            self.rows[self.left[there]] = held[there]
            self.left = self.left[~there]
            self.advance(int(np.sum(there)))
        return self.digests[self.left]
