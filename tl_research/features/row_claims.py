"""Coordinate the processes that fill one store, so that each row is computed once.

    <store>/<key>/claims.lock        locked while a process claims; counts the processes that have ended
    <store>/<key>/<writer>.claims    the rows that a process has claimed, 8 bytes each; locked while the process lives

A process that is killed loses its lock, and with it its claims.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np

from tl_research.system.locks import Lock, is_held, locked, try_lock

log = logging.getLogger(__name__)


class RowClaims:
    """This process' claims on rows of the store in `folder`. Where nothing can be written or locked there, every claim
    is granted: rows are then computed twice, and are as right."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.path = folder / f"{uuid4().hex[:12]}.claims"
        self.lock: Lock | None = None
        """Held since the first claim; the claims hold as long as it does."""
        self._num_ended = -1

    def take(self, digests: np.ndarray, count: int) -> np.ndarray | None:
        """Claim at most `count` of the rows with these digests `(n, 4)`.

        Returns:
            Positions, `(m,)`, of the claimed digests; none if living processes have claimed all. None if a process has
            ended since the last call: read the rows that it has left in the store, then call again.
        """
        try:
            with self._exclusive() as ended:
                claimed = self._claimed_by_others(ended)
                if self._num_ended != ended[0]:
                    self._num_ended = ended[0]
                    return None
                free = np.flatnonzero(~np.isin(digests[:, 0], claimed))[:count]
                self.note(digests[free])
        except OSError as error:
            log.debug("%s: no claims: %s", self._folder, error)
            return np.arange(len(digests))[:count]
        return free

    def close(self) -> None:
        """Release all claims: their rows are in the store by now, or this process will not compute them."""
        if self.lock is None:
            return
        with contextlib.suppress(OSError), self._exclusive() as ended:
            self.path.unlink(missing_ok=True)
            ended[0] += 1
        self.lock.close()
        self.lock = None

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[list[int]]:
        """Keep other processes from claiming; yields the number of processes that have ended, to be counted up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / "claims.lock") as file:
            before = _read_number(file)
            ended = [before]
            yield ended
            if ended[0] != before:
                file.truncate(0)
                file.write(str(ended[0]).encode())

    def _claimed_by_others(self, ended: list[int]) -> np.ndarray:
        """Read the first 8 bytes of each digest that another living process has claimed; remove dead processes' claims
        and count them as `ended`."""
        prefixes = [np.empty(0, "<u8")]
        for path in self._folder.glob("*.claims"):
            if path == self.path:
                continue
            if is_held(path):
                content = path.read_bytes()
                prefixes.append(np.frombuffer(content[: len(content) // 8 * 8], "<u8"))
            else:
                path.unlink(missing_ok=True)
                ended[0] += 1
        return np.concatenate(prefixes)

    def note(self, digests: np.ndarray) -> None:
        """Add rows to this process' claims, for others to read."""
        if self.lock is None:
            self.lock = try_lock(self.path)
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(digests[:, 0]).tobytes())


def _read_number(file: IO[bytes]) -> int:
    file.seek(0, os.SEEK_SET)
    text = file.read()
    return int(text) if text.isdigit() else 0
