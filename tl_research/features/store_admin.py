"""List, verify and prune stores of features."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.errors import InputError
from tl_research.features.store import ENTRY, Shard
from tl_research.system.locks import is_held


@dataclass
class StoreEntry:
    """The store of one key under `root`, for people: `about` is empty if `about.json` is lost or damaged."""

    folder: Path
    about: dict[str, Any]
    shards: list[Shard]

    @property
    def num_rows(self) -> int:
        """Rows in all shards; an image that was written twice counts twice."""
        return sum(len(shard.entries) for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def last_used(self) -> float:
        """Unix time of the last read or write."""
        return max((shard.last_used for shard in self.shards), default=0.0)

    def damaged(self) -> dict[Path, np.ndarray]:
        """Return the positions of damaged rows for each shard that has any."""
        salt = zlib.crc32(self.folder.name.encode())
        positions = {shard.index.with_suffix(".rows"): shard.damaged(salt) for shard in self.shards}
        return {path: damaged for path, damaged in positions.items() if len(damaged)}


def list_entries(root: Path) -> list[StoreEntry]:
    """List the stores under `root`, the most recently used last.

    Raises:
        InputError: `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"features.store={root}: no such folder")
    entries = [_entry(folder) for folder in sorted(root.iterdir()) if any(folder.glob("*.index"))]
    return sorted(entries, key=lambda entry: entry.last_used)


def _entry(folder: Path) -> StoreEntry:
    about: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        about = json.loads((folder / "about.json").read_text())
    row: np.dtype | None = None
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        base, shape = about["about"]["row"]
        row = np.dtype((base, tuple(shape)))
    if not row or not row.itemsize:
        about, row = {}, None
    return StoreEntry(folder, about, [_shard(index, row) for index in sorted(folder.glob("*.index"))])


def _shard(index: Path, row: np.dtype | None) -> Shard:
    with contextlib.suppress(OSError):
        if row is not None:
            return Shard.read(index, row)
    return Shard(index, np.dtype("u1"), np.empty(0, ENTRY))


def prune_store(root: Path, max_bytes: float, unused_since: float = float("inf")) -> int:
    """Remove the least recently used shards until at most `max_bytes` are left; returns the bytes freed.

    Shards used after `unused_since` (unix time) stay, whatever their size: a run is using them. Rows without an index
    are removed, too. Processes that read keep their open files, and compute removed rows again.
    """
    freed = 0
    shards = sorted(
        (shard.last_used, shard.num_bytes, shard.index) for entry in list_entries(root) for shard in entry.shards
    )
    total = sum(size for _, size, _ in shards)
    for used, size, index in shards:
        if total - freed <= max_bytes or used > unused_since:
            break
        for path in (index, index.with_suffix(".rows")):
            path.unlink(missing_ok=True)
        freed += size
    for rows in root.glob("*/*.rows"):
        with contextlib.suppress(FileNotFoundError):
            if (
                not rows.with_suffix(".index").exists() and time.time() - rows.stat().st_mtime > 3600
            ):  # a new shard has no index yet
                freed += rows.stat().st_size
                rows.unlink()
    for folder in {index.parent for _, _, index in shards} | {about.parent for about in root.glob("*/about.json")}:
        if not any(folder.glob("*.index")) and not any(folder.glob("*.rows")):
            _remove_empty(folder)
    return freed


def _remove_empty(folder: Path) -> None:
    """Remove the folder of a store without rows, unless a process is about to compute some."""
    with contextlib.suppress(OSError):
        if any(is_held(path) for path in folder.glob("*.claims")):
            return
        for path in (*folder.glob("*.claims"), folder / "claims.lock", folder / "about.json"):
            path.unlink(missing_ok=True)
        folder.rmdir()
