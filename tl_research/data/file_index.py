"""Remember the inspection of every file by its status, as git's index does, so that unmodified files are neither hashed
nor checked again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tl_research.data import decode
from tl_research.data.fingerprint import Fingerprint
from tl_research.data.formats import is_plain
from tl_research.data.pixel_range import DeepValues
from tl_research.system.files import write_atomically

log = logging.getLogger(__name__)

INDEX_VERSION = "081e55a33b39f1f2"
"""Change it to any other text whenever the meaning of an entry changes; files are then checked again. (The first value
is the hash of this file at commit aeace94, so that its entries remain valid.)"""

# A file modified within the file system's clock tick after reading could look unmodified; it is not remembered.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of checking one file: SHA-256 of its content and stored `(width, height)`, or the reason why it is set
    aside."""

    path: Path
    digest: bytes = b""
    size: tuple[int, int] | None = None
    reason: str | None = None
    values: DeepValues | None = None
    """Of an image with more than 8 bits a channel."""
    is_unread: bool = False
    """Whether its format is not read here; no damage then."""
    fingerprint: Fingerprint | None = None
    """None also where an older version checked the file."""


class FileIndex:
    """Inspections stored under `folder`, one JSON file per folder of images; with None nothing is stored.

    An entry is valid while the file's size, inode and both times are unchanged; `ctime` cannot be set back by hand. A
    damaged or foreign index is ignored. If two processes write at the same moment, some files are inspected twice.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._version = {**decode.version(), "index": INDEX_VERSION}
        self._known: dict[str, dict[str, list[Any]]] = {}
        self._changed: dict[str, set[str]] = {}

    def get(self, path: Path) -> Inspection | None:
        """Look up a file's inspection; None if unknown or if the file was modified since."""
        if self.folder is None:
            return None
        entry = self._of(str(path.parent)).get(path.name)
        if entry is None or entry[0] != self._status(path):
            return None
        digest, size, reason, *later = entry[1:]
        if not later and (reason or not is_plain(path)):  # version 0.1 read fewer files, and noted no values
            return None
        values, found = later or (None, None)
        return Inspection(
            path,
            bytes.fromhex(digest),
            tuple(size) if size else None,
            reason,
            DeepValues(*values) if values else None,
            fingerprint=Fingerprint.of(found) if found else None,
        )

    def status(self, path: Path) -> list[int] | None:
        """Return a file's status for `put`; call it before reading. None if missing or modified too recently."""
        status = self._status(path) if self.folder else None
        return status if status and max(status[2:]) < time.time_ns() - SETTLED_NS else None

    def put(self, inspection: Inspection, status: list[int] | None) -> None:
        """Remember an inspection with the file's status before reading; read errors, which may be temporary, are not
        remembered."""
        if status is not None and inspection.digest:
            path, digest = inspection.path, inspection.digest.hex()
            later = [astuple(each) if each else None for each in (inspection.values, inspection.fingerprint)]
            self._of(str(path.parent))[path.name] = [status, digest, inspection.size, inspection.reason, *later]
            self._changed.setdefault(str(path.parent), set()).add(path.name)

    def save(self) -> None:
        """Write new inspections to disk. If the folder is not writable, the next run repeats them."""
        for folder, names in self._changed.items():
            file = self._file(folder)
            changed = {name: self._known[folder][name] for name in names}
            self._known[folder] |= self._read(folder) | changed  # another process may have added other files
            known = self._known[folder].items()
            files = {name: entry[:4] for name, entry in known}  # as version 0.1 reads them
            values, prints = ({name: entry[n] for name, entry in known if len(entry) > 4} for n in (4, 5))
            facts = {"folder": folder, "version": self._version, "files": files, "values": values, "prints": prints}
            content = json.dumps(facts)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, f"{_hash(content)}\n{content}")
            except OSError as error:
                log.debug("%s: %s", file, error)
        self._changed.clear()

    def _of(self, folder: str) -> dict[str, list[Any]]:
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        return self._known[folder]

    def _read(self, folder: str) -> dict[str, list[Any]]:
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            checksum, _, content = self._file(folder).read_text().partition("\n")
            entries = json.loads(content) if checksum == _hash(content) else {}
            if (entries.get("folder"), entries.get("version")) == (folder, self._version):
                values, prints = entries.get("values", {}), entries.get("prints", {})
                return {
                    name: [*entry, values[name], prints.get(name)] if name in values else entry
                    for name, entry in entries["files"].items()
                }
        return {}

    def _file(self, folder: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"

    @staticmethod
    def _status(path: Path) -> list[int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
