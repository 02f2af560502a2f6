"""Locks on files. The system releases them when their process ends, however it ends, so none is ever stale; on a
shared file system they hold between machines."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

TRIES, PAUSE = 20, 0.01


class Lock:
    """A lock, held until `close` or until nothing refers to it."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


def try_lock(path: Path) -> Lock | None:
    """Take the lock on a file, which is created if need be; None if another holder has it. Where the file system has
    no locks, everybody gets it.

    Raises:
        OSError: the file cannot be created.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    for _ in range(TRIES):  # `is_held` takes it for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE)
        except OSError:
            return Lock(descriptor)
        else:
            return Lock(descriptor)
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Tell whether any process, this one included, holds the lock. Raises `OSError` if it cannot be known."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
