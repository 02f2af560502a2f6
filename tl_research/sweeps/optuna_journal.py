"""Keep the journal file of a study intact when processes that share it are killed.

Each process locks a byte of its own in a file beside the journal; the system releases the lock however it ends.
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
    """This process among those that share a study. Without locks in the file system it assumes to be alone."""

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


def check_is_journal(journal: Path) -> None:
    """Refuse a file that is not a journal of Optuna's, before it is changed: the path may be a typing mistake."""
    if not journal.is_file():
        return
    with journal.open("rb") as file:
        first = file.readline()
    try:
        torn = not first.endswith(b"\n") and b'{"op_code"'.startswith(first[:10])  # killed while writing the first line
        is_journal = torn or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        is_journal = False
    if not is_journal:
        raise InputError(f"{journal}: not a journal of Optuna's; give another hydra.sweeper.study")


def mend(journal: Path) -> None:
    """Remove an incomplete last line, left by a killed process: the next entry would be appended to it, and the journal
    could not be read any further."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
