"""Claims: which rows each process at work on a store has taken upon itself, so that no two compute the same.

    <store>/<key>/claims.lock        held while one of them chooses; a number that grows when one of them ends
    <store>/<key>/<writer>.claims    what that process has chosen, 8 bytes a row; its lock is held while it lives

A process that is killed loses its lock, and with it its claims.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np

from tl_research.system.locks import Lock, is_held, try_lock

log = logging.getLogger(__name__)


class RowClaims:
    """This process' claims on the rows of the store in `folder`. Where nothing can be written or locked there they are
    granted without asking: rows are then computed twice, and are as right."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / f"{uuid4().hex[:12]}.claims"
        self._lock: Lock | None = None
        self._generation = -1

    def take(self, count: int, look: Callable[[bool], np.ndarray]) -> np.ndarray:
        """Claims rows.

        Args:
            count: how many at most.
            look: gives the digests `(n, 4)` that are wanted; its argument says that others have ended since the last
                call, so that it should see first what they have left.

        Returns:
            Positions, `(m,)`, of the digests that are now ours; none if living processes have claimed all.
        """
        try:
            with self._alone() as generation:
                theirs = self._theirs(generation)
                changed, self._generation = self._generation != generation[0], generation[0]
                wanted = look(changed)
                free = np.flatnonzero(~np.isin(wanted[:, 0], theirs))[:count]
                self._note(wanted[free])
        except OSError as error:
            log.debug("%s: no claims: %s", self._folder, error)
            return np.arange(len(look(False)))[:count]
        return free

    def close(self) -> None:
        """Gives up what was claimed, which is computed by now, or never will be."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError), self._alone() as generation:
            self._path.unlink(missing_ok=True)
            generation[0] += 1
        self._lock.close()
        self._lock = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[list[int]]:
        """Only one process at a time is inside. Gives the generation, which may be changed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "claims.lock").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = _number(file)
            generation = [before]
            yield generation
            if generation[0] != before:
                file.truncate(0)
                file.write(str(generation[0]).encode())

    def _theirs(self, generation: list[int]) -> np.ndarray:
        """First 8 bytes of the digests that other living processes have claimed; the dead are buried."""
        found = [np.empty(0, "<u8")]
        for path in self._folder.glob("*.claims"):
            if path == self._path:
                continue
            if is_held(path):
                content = path.read_bytes()
                found.append(np.frombuffer(content[: len(content) // 8 * 8], "<u8"))
            else:
                path.unlink(missing_ok=True)
                generation[0] += 1
        return np.concatenate(found)

    def _note(self, digests: np.ndarray) -> None:
        if self._lock is None:
            self._lock = try_lock(self._path)
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(digests[:, 0]).tobytes())


def _number(file: IO[bytes]) -> int:
    file.seek(0, os.SEEK_SET)
    text = file.read()
    return int(text) if text.isdigit() else 0
