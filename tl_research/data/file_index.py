"""The file-status index: what a file turned out to be when it was last read, as git keeps one, so that a file that has
not been touched is neither hashed nor checked again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_research.data import decode
from tl_research.system.files import write_atomically

log = logging.getLogger(__name__)

INDEX_VERSION = "081e55a33b39f1f2"
"""Change it, to any other text, when an entry means something else than before: files are then checked again. (The
first value is a hash of this file's text at commit aeace94, so that what was known then is still known.)"""

# A file written within the file system's clock tick after it was read could look untouched: such are not remembered.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one file turned out to be: the SHA-256 of its content and `(width, height)` as stored, or the reason why it
    is set aside."""

    path: Path
    digest: bytes = b""
    size: tuple[int, int] | None = None
    reason: str | None = None


class FileIndex:
    """Inspections remembered under `folder`, a JSON file for each folder of images; None remembers nothing.

    An entry holds as long as size, inode and both times of the file do; `ctime` cannot be set back by hand. A damaged
    or foreign index is as good as none. Two processes that write in the same moment cost an inspection done twice.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._version = {**decode.version(), "index": INDEX_VERSION}
        self._known: dict[str, dict[str, list[Any]]] = {}
        self._changed: dict[str, set[str]] = {}

    def get(self, path: Path) -> Inspection | None:
        """What is known of a file, if it has not been touched since."""
        if self.folder is None:
            return None
        entry = self._of(str(path.parent)).get(path.name)
        if entry is None or entry[0] != self._status(path):
            return None
        digest, size, reason = entry[1:]
        return Inspection(path, bytes.fromhex(digest), tuple(size) if size else None, reason)

    def status(self, path: Path) -> list[int] | None:
        """Take it before the file is read, and give it to `put`. None: not there, or too fresh to trust."""
        found = self._status(path) if self.folder else None
        return found if found and max(found[2:]) < time.time_ns() - SETTLED_NS else None

    def put(self, inspection: Inspection, status: list[int] | None) -> None:
        """Remembers what was found in a file that had this status before it was read; not that it could not be read,
        which may pass."""
        if status is not None and inspection.digest:
            path, digest = inspection.path, inspection.digest.hex()
            self._of(str(path.parent))[path.name] = [status, digest, inspection.size, inspection.reason]
            self._changed.setdefault(str(path.parent), set()).add(path.name)

    def save(self) -> None:
        """Writes what has been learned. A folder that cannot be written costs the next run its time, no more."""
        for folder, names in self._changed.items():
            place = self._place(folder)
            ours = {name: self._known[folder][name] for name in names}
            self._known[folder] |= self._read(folder) | ours  # another process may have been at its other files
            content = json.dumps({"folder": folder, "version": self._version, "files": self._known[folder]})
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(place, f"{_hash(content)}\n{content}")
            except OSError as error:
                log.debug("%s: %s", place, error)
        self._changed.clear()

    def _of(self, folder: str) -> dict[str, list[Any]]:
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        return self._known[folder]

    def _read(self, folder: str) -> dict[str, list[Any]]:
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            told, _, content = self._place(folder).read_text().partition("\n")
            found = json.loads(content) if told == _hash(content) else {}
            if (found.get("folder"), found.get("version")) == (folder, self._version):
                return dict(found["files"])
        return {}

    def _place(self, folder: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"

    @staticmethod
    def _status(path: Path) -> list[int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
