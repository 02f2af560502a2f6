"""Features on disk, addressed by the content of the images that they were computed from.

    <store>/<key>/about.json         the facts behind the key: network, weights, image size, decoder, engine, CPU
    <store>/<key>/<shard>.rows       the rows as raw numbers: np.memmap(path, "<f4").reshape(-1, d)
    <store>/<key>/<shard>.index      for each row the digest of its image and a checksum of both

A writer appends to its own shards only, first the row and then its entry, so no lock is needed, a killed process leaves
all rows that it had finished, and two may fill one store at once. A reader ignores each row whose checksum, which
starts from the store's key, does not match.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from tl_research.system.files import write_atomically

log = logging.getLogger(__name__)

FORMAT = 1
ENTRY = np.dtype([("digest", "<u8", (4,)), ("checksum", "<u4")])
LOOK_SECONDS = 2.0  # between two looks for rows of other processes
LARGEST_SHARD = 2**30  # bytes of rows; old shards can then be removed one by one

Digests = np.ndarray
"""SHA-256 digests as `(n, 4)` little-endian uint64."""


def as_digests(hashes: list[bytes]) -> Digests:
    """Convert digests of 32 bytes each to an array `(n, 4)`."""
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 4)


@dataclass
class Shard:
    """One writer's part of a store, with the entries that it had when it was read."""

    index: Path
    row: np.dtype
    entries: np.ndarray

    @classmethod
    def read(cls, index: Path, row: np.dtype) -> Shard:
        """Read the entries that have a row; either file may have been cut. Raises `OSError`."""
        num_rows = index.with_suffix(".rows").stat().st_size // row.itemsize
        entries = np.frombuffer(_whole(index.read_bytes(), ENTRY.itemsize), ENTRY)
        return cls(index, row, entries[:num_rows])

    @property
    def num_bytes(self) -> int:
        """Bytes on disk; 0 if the shard has been removed."""
        return _size(self.index) + _size(self.index.with_suffix(".rows"))

    @property
    def last_used(self) -> float:
        """Unix time of the last read or write; 0 if the shard has been removed."""
        with contextlib.suppress(OSError):
            return self.index.stat().st_mtime
        return 0.0

    def rows(self) -> np.ndarray:
        """Map all rows into memory: `(n, ...)`. Raises `OSError` if the shard has been removed."""
        if not len(self.entries):
            return np.empty(0, self.row)
        return np.memmap(self.index.with_suffix(".rows"), self.row, "r", shape=(len(self.entries),))

    def damaged(self, salt: int) -> np.ndarray:
        """Return the positions of the rows whose checksum does not match."""
        try:
            rows = self.rows()
        except (OSError, ValueError):  # removed, or cut since it was listed
            return np.arange(len(self.entries))
        pairs = zip(self.entries["digest"], rows, self.entries["checksum"], strict=True)
        return np.array([i for i, (digest, row, crc) in enumerate(pairs) if checksum(digest, row, salt) != crc], int)


def checksum(digest: np.ndarray, row: np.ndarray, salt: int) -> int:
    """Return the CRC-32 of a row and its digest; the store's own start value `salt` excludes rows of other stores."""
    return zlib.crc32(row.data, zlib.crc32(digest.data, salt))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


class FeatureStore:
    """The rows of one frozen network under `root`. Reading and writing never fail because of the disk: unreadable rows
    are absent, and after a write has failed the run goes on without the store.

    Args:
        root: the folder of all stores.
        about: all that rows depend on beside the image, as plain data; its hash is the store's key.
        row: dtype of one row, such as `np.dtype(("<f4", (1280,)))`.
        note: more for `about.json`, for people; not part of the key.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], row: np.dtype, note: Mapping[str, Any] | None = None):
        self.about = {**about, "format": FORMAT, "row": [row.base.str, list(row.shape)]}
        self.key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = root / self.key
        self.row = row
        self.note = dict(note or {})
        self._salt = zlib.crc32(self.key.encode())
        self.writer: ShardWriter | None = None
        self._warned: set[Path] = set()
        self.broken = False
        """Whether writing has failed."""
        self.shards: list[Shard] = []
        self.look_seconds = 0.0
        """Duration of the last `refresh`."""
        self.refresh()

    def refresh(self) -> None:
        """Read the entries that other processes have added since."""
        began = time.perf_counter()
        shards: list[Shard] = []
        for index in sorted(self.folder.glob("*.index"), reverse=True):  # the newest first: it may replace damaged rows
            with contextlib.suppress(OSError):  # removed meanwhile, or without permission
                shards.append(Shard.read(index, self.row))
        self.shards = shards
        prefixes = np.concatenate([np.empty(0, "<u8"), *(shard.entries["digest"][:, 0] for shard in shards)])
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]
        self._ends = np.cumsum([len(shard.entries) for shard in shards], dtype=np.int64)
        self._looked, self.look_seconds = time.monotonic(), time.perf_counter() - began

    def refresh_if_due(self) -> bool:
        """Refresh if the last time is some seconds ago, more in a large store. Returns whether it did."""
        due = time.monotonic() - self._looked > max(LOOK_SECONDS, 50 * self.look_seconds)
        if due:
            self.refresh()
        return due

    def __contains__(self, digest: np.ndarray) -> bool:
        return bool(self.has(digest[None])[0])

    def has(self, digests: Digests) -> np.ndarray:
        """Return whether there are entries for `digests` `(n, 4)`: bool `(n,)`. Only `read` checks the rows."""
        left = np.searchsorted(self._prefixes, digests[:, 0])
        inside = left < len(self._prefixes)
        inside[inside] = self._prefixes[left[inside]] == digests[inside, 0]
        return inside

    def read(self, digests: Digests, out: np.ndarray) -> np.ndarray:
        """Copy the rows of `digests` `(n, 4)` into `out` `(n, ...)`, and check each copy.

        Returns which were found: bool `(n,)`. The other rows of `out` are undefined.
        """
        found = np.zeros(len(digests), bool)
        left = np.searchsorted(self._prefixes, digests[:, 0], "left")
        right = np.searchsorted(self._prefixes, digests[:, 0], "right")
        for attempt in itertools.count():  # an image may have several rows, some of them damaged
            pending = np.flatnonzero(~found & (left + attempt < right))
            if not len(pending):
                return found
            self._fetch(pending, self._order[left[pending] + attempt], digests, out, found)
        raise AssertionError("unreachable")

    def _fetch(
        self, wanted: np.ndarray, entries: np.ndarray, digests: Digests, out: np.ndarray, found: np.ndarray
    ) -> None:
        """Try one entry, counted over all shards, for each wanted position."""
        numbers = np.searchsorted(self._ends, entries, "right")
        for number in np.unique(numbers):
            shard, chosen = self.shards[number], numbers == number
            first = self._ends[number] - len(shard.entries)
            try:
                rows = shard.rows()
            except (OSError, ValueError):  # removed, or cut since it was listed
                continue
            local, targets = entries[chosen] - first, wanted[chosen]
            same = (shard.entries["digest"][local] == digests[targets]).all(axis=1)
            in_order = np.argsort(local[same])  # in the order on the disk
            local, targets = local[same][in_order], targets[same][in_order]
            out[targets] = rows[local]
            sums = shard.entries["checksum"][local]
            found[targets] = [checksum(digests[i], out[i], self._salt) == c for i, c in zip(targets, sums, strict=True)]
            if not found[targets].all() and shard.index not in self._warned:
                self._warned.add(shard.index)  # while waiting for another process, reads come twenty times a second
                bad = int(np.sum(~found[targets]))
                log.warning("%s: %d damaged row(s), not used", shard.index.with_suffix(".rows"), bad)
            with contextlib.suppress(OSError):
                os.utime(shard.index)  # the time of the last use, for `prune_store`

    def append(self, digests: Digests, rows: np.ndarray) -> None:
        """Add rows. A full disk or a folder without write permission ends writing, with one warning."""
        rows = np.ascontiguousarray(rows, self.row.base)
        if self.broken:
            return
        try:
            if self.writer is None or self.writer.num_bytes >= LARGEST_SHARD:
                self.close()
                self.writer = ShardWriter.create(self.folder, {"about": self.about, **self.note})
            checks = [checksum(digest, row, self._salt) for digest, row in zip(digests, rows, strict=True)]
            self.writer.append(digests, np.array(checks, "<u4"), rows)
        except OSError as error:
            self.broken = True
            log.warning("features.store=%s: %s; the run goes on without", self.folder.parent, error.strerror)
            self.close()

    def close(self) -> None:
        """End the shard that is being written, if there is one."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class ShardWriter:
    """Appends to one shard of its own."""

    def __init__(self, rows: IO[bytes], index: IO[bytes]):
        self._rows, self._index = rows, index
        self.num_bytes = 0

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> ShardWriter:
        """Begin a shard in `folder`, with `about.json` if it is the first. Raises `OSError`."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "about.json").exists():
            write_atomically(folder / "about.json", json.dumps(about, indent=2) + "\n")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:12]}"
        rows = (folder / f"{name}.rows").open("xb")
        try:
            return cls(rows, (folder / f"{name}.index").open("xb"))
        except OSError:
            rows.close()
            raise

    def append(self, digests: Digests, checksums: np.ndarray, rows: np.ndarray) -> None:
        """Write rows, then their entries. Raises `OSError`."""
        entries = np.empty(len(rows), ENTRY)
        entries["digest"], entries["checksum"] = digests, checksums
        self._rows.write(np.ascontiguousarray(rows).data)
        self._rows.flush()
        self._index.write(entries.tobytes())
        self._index.flush()
        self.num_bytes += rows.nbytes

    def close(self) -> None:
        """End the shard."""
        for file in (self._rows, self._index):
            with contextlib.suppress(OSError):  # a full disk takes no more
                file.close()
