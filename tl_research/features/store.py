"""FeatureStore: rows that a frozen network once computed, on disk, addressed by the content they were computed from.

    <store>/<key>/about.json         what the key stands for: network, weights, image size, decoder, engine, CPU
    <store>/<key>/<shard>.rows       the rows as raw numbers: np.memmap(path, "<f4").reshape(-1, d)
    <store>/<key>/<shard>.index      for each row the digest it belongs to and a checksum of both

A writer appends to shards of its own and never touches another's, first the row and then its entry, so no lock is
needed, a killed process leaves all it had finished, and two may fill one store at once. A reader believes no byte: a
row counts only if its checksum, which starts from the store's key, holds. What does not is as if it were not there.
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
LOOK_SECONDS = 2.0  # between looks at what other processes have added
LARGEST_SHARD = 2**30  # bytes of rows; a limit lets old ones be dropped one by one

Digests = np.ndarray
"""SHA-256 digests as `(n, 4)` little-endian uint64."""


def as_digests(hashes: list[bytes]) -> Digests:
    """Digests of 32 bytes each as an array `(n, 4)`."""
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 4)


@dataclass
class Shard:
    """One writer's part of a store, as far as it had come when it was looked at."""

    index: Path
    row: np.dtype
    entries: np.ndarray

    @classmethod
    def read(cls, index: Path, row: np.dtype) -> Shard:
        """Entries whose rows are there, too: a cut file ends both where the shorter ends. Raises `OSError`."""
        held = index.with_suffix(".rows").stat().st_size // row.itemsize
        entries = np.frombuffer(_whole(index.read_bytes(), ENTRY.itemsize), ENTRY)
        return cls(index, row, entries[:held])

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, as long as the shard is there."""
        return _size(self.index) + _size(self.index.with_suffix(".rows"))

    @property
    def last_used(self) -> float:
        """Unix time of the last read or write; 0 if the shard has been removed."""
        with contextlib.suppress(OSError):
            return self.index.stat().st_mtime
        return 0.0

    def rows(self) -> np.ndarray:
        """All rows, memory-mapped: `(n, ...)`. Raises `OSError` if the shard has been removed."""
        if not len(self.entries):
            return np.empty(0, self.row)
        return np.memmap(self.index.with_suffix(".rows"), self.row, "r", shape=(len(self.entries),))

    def damaged(self, salt: int) -> np.ndarray:
        """Positions of the rows whose checksum does not hold."""
        try:
            rows = self.rows()
        except (OSError, ValueError):  # removed, or cut since it was listed
            return np.arange(len(self.entries))
        pairs = zip(self.entries["digest"], rows, self.entries["checksum"], strict=True)
        return np.array([i for i, (digest, row, told) in enumerate(pairs) if checksum(digest, row, salt) != told], int)


def checksum(digest: np.ndarray, row: np.ndarray, salt: int) -> int:
    """CRC-32 of a row and of what it belongs to, from the store's own start value: rows of another store never fit."""
    return zlib.crc32(row.data, zlib.crc32(digest.data, salt))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


class FeatureStore:
    """The rows of one frozen network under `root`. Reading and writing never fail for what is on the disk: what cannot
    be read is absent, and when writing fails the rest of the run goes on without.

    Args:
        root: the folder of all stores.
        about: what the rows depend on beside the image, as plain data; its hash is the store's key.
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
        self._told: set[Path] = set()
        self.broken = False
        """Whether nothing can be written any more."""
        self.shards: list[Shard] = []
        self.look_seconds = 0.0
        """What the last `refresh` took."""
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of what other processes have added since."""
        began = time.perf_counter()
        found: list[Shard] = []
        for index in sorted(self.folder.glob("*.index"), reverse=True):  # the newest first: it may mend an older one
            with contextlib.suppress(OSError):  # removed meanwhile, or not ours to read
                found.append(Shard.read(index, self.row))
        self.shards = found
        prefixes = np.concatenate([np.empty(0, "<u8"), *(shard.entries["digest"][:, 0] for shard in found)])
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]
        self._ends = np.cumsum([len(shard.entries) for shard in found], dtype=np.int64)
        self._looked, self.look_seconds = time.monotonic(), time.perf_counter() - began

    def refresh_if_due(self) -> bool:
        """`refresh`, if the last is some seconds ago, more where there is much to look through; whether it was."""
        due = time.monotonic() - self._looked > max(LOOK_SECONDS, 50 * self.look_seconds)
        if due:
            self.refresh()
        return due

    def __contains__(self, digest: np.ndarray) -> bool:
        return bool(self.has(digest[None])[0])

    def has(self, digests: Digests) -> np.ndarray:
        """Whether there are entries for `digests` `(n, 4)`, by the look of them: bool `(n,)`; `read` also checks."""
        left = np.searchsorted(self._prefixes, digests[:, 0])
        inside = left < len(self._prefixes)
        inside[inside] = self._prefixes[left[inside]] == digests[inside, 0]
        return inside

    def read(self, digests: Digests, out: np.ndarray) -> np.ndarray:
        """Copies the rows of `digests` `(n, 4)` into `out` `(n, ...)`, each checked after it was copied.

        Returns which were found: bool `(n,)`. Rows of `out` that were not found hold nothing of use.
        """
        found = np.zeros(len(digests), bool)
        left = np.searchsorted(self._prefixes, digests[:, 0], "left")
        right = np.searchsorted(self._prefixes, digests[:, 0], "right")
        for attempt in itertools.count():  # the same content may have been written twice, and once be damaged
            open_ = np.flatnonzero(~found & (left + attempt < right))
            if not len(open_):
                return found
            self._fetch(open_, self._order[left[open_] + attempt], digests, out, found)
        raise AssertionError("unreachable")

    def _fetch(
        self, wanted: np.ndarray, places: np.ndarray, digests: Digests, out: np.ndarray, found: np.ndarray
    ) -> None:
        """Tries for each wanted position one place, counted over all shards."""
        numbers = np.searchsorted(self._ends, places, "right")
        for number in np.unique(numbers):
            shard, chosen = self.shards[number], numbers == number
            first = self._ends[number] - len(shard.entries)
            try:
                rows = shard.rows()
            except (OSError, ValueError):  # removed, or cut since it was listed
                continue
            local, mine = places[chosen] - first, wanted[chosen]
            same = (shard.entries["digest"][local] == digests[mine]).all(axis=1)
            in_order = np.argsort(local[same])  # as they lie on the disk
            local, mine = local[same][in_order], mine[same][in_order]
            out[mine] = rows[local]
            told = shard.entries["checksum"][local]
            found[mine] = [checksum(digests[i], out[i], self._salt) == c for i, c in zip(mine, told, strict=True)]
            if not found[mine].all() and shard.index not in self._told:
                self._told.add(shard.index)  # who waits for another process looks twenty times a second
                bad = int(np.sum(~found[mine]))
                log.warning("%s: %d damaged row(s), not used", shard.index.with_suffix(".rows"), bad)
            with contextlib.suppress(OSError):
                os.utime(shard.index)  # when it was last of use, for `prune`

    def append(self, digests: Digests, rows: np.ndarray) -> None:
        """Adds rows; a full disk or a folder that cannot be written ends that, with one warning."""
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
        """Ends the shard that is being written, if there is one."""
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
            with contextlib.suppress(OSError):  # what a full disk has not taken it will not take now
                file.close()
