"""Identity of a job: what it was asked to do, on which images, from which weights, by which code. Two jobs with one
identity come to one result, so the second need not run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.runs.run import versions

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

# Where results and caches go, and what decides whether a job runs at all, cannot change a number; whether weights were
# there shows in the files.
_NOT_ASKED = (
    "choices",
    "directory",
    "fresh",
    "missing_weights",
    "resume",
    "shard",
    "data.cache",
    "features.store",
    "features.max_gb",
    "trainer.checkpoint_minutes",
)

# Modules that only show or start what others compute.
_NOT_COMPUTING = (
    "__main__.py",
    "configure",
    "describe.py",
    "figures.py",
    "leaderboard.py",
    "live.py",
    "lr_find.py",
    "pool.py",
    "preload.py",
    "progress.py",
    "report.py",
    "stock.py",
    "templates",
    "trial.py",
)


def identity(config: Mapping[str, Any], data: DataModule, files: Iterable[Path]) -> str:
    """SHA-256, hexadecimal.

    Args:
        config: resolved, as `Experiment.config`.
        data: its images count by their content, in order, with label and split; not by where they lie.
        files: those whose content the backbone is made of.
    """
    asked = _without(config, _NOT_ASKED)
    hashed = hashlib.sha256(json.dumps([asked, list(data.class_names), versions()], sort_keys=True).encode())
    hashed.update(b"".join(data.digests))
    hashed.update(json.dumps([data.labels.tolist(), data.split_of.tolist()]).encode())
    hashed.update(json.dumps(None if data.groups is None else data.groups.tolist()).encode())
    for path in files:
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    hashed.update(code().encode())
    return hashed.hexdigest()


@cache
def code() -> str:
    """SHA-256 of our source files, but for those that cannot change a number."""
    package = Path(__file__).parent
    sources = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    hashed = hashlib.sha256()
    for source in sources:
        if source.parts[0] not in _NOT_COMPUTING:
            hashed.update(f"{source.as_posix()}\0".encode() + (package / source).read_bytes())
    return hashed.hexdigest()


def _without(config: Mapping[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{prefix}{key}" not in keys
    }
