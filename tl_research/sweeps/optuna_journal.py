"""The journal file of a study among processes that are killed.

Several may work on one: each holds a lock on a byte of its own in a file beside it, which the system releases however
the process ends.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tl_research.errors import InputError


class Owner:
    """This process among those that work on a study. Where the file system knows no locks, it takes itself for the only
    one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self.number = 1 + secrets.randbelow(2**30)
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self.number)

    def lives(self, number: int | None) -> bool:
        """Whether the process that drew this number is still there."""
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
        """While nobody else is in here."""
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def close(self) -> None:
        """Leaves."""
        self._file.close()


def check_is_journal(journal: Path) -> None:
    """Before the first byte is written, or cut off: the path may be a slip of the pen."""
    if not journal.is_file():
        return
    with journal.open("rb") as file:
        first = file.readline()
    try:
        torn = not first.endswith(b"\n") and b'{"op_code"'.startswith(first[:10])  # its first line, of all
        ours = torn or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{journal}: not a journal of Optuna's; give another hydra.sweeper.study")


def mend(journal: Path) -> None:
    """Cuts off a last line that was only half written when its process was killed: the next would be added to it, and
    the journal could not be read from there on."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
