"""Locks on files. The system releases them when their process ends, however it ends, so none is ever stale; on a
shared file system they hold between machines."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

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


@contextmanager
def locked(path: Path, work: str = "") -> Iterator[BinaryIO]:
    """Open a file for reading and appending, under a lock for which other processes wait; `work` tells them what for.
    Who holds it may remove or rename the file. Where the file system has no locks, everybody gets it.

    Raises:
        OSError: the file cannot be created.
    """
    while True:
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if work:
                    log.info("waiting for another process that %s", work)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                log.debug("%s: no lock: %s", path, error)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


class Owner:
    """This process among those that share a file, each of which locks a byte of its own. Without locks in the file
    system it assumes to be alone."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self.number = 1 + secrets.randbelow(2**30)
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self.number)

    def lives(self, number: int | None) -> bool:
        """Whether the process with this number is still running."""
        if number is None or number == self.number:
            return number is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold an exclusive lock among all owners."""
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def close(self) -> None:
        """Release the locks."""
        self._file.close()
