"""Checkpoints of a run that is under way: all that it takes to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

KEPT = 2


@dataclass
class CheckpointState:
    """Plain data, and arrays by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def part(self, name: str) -> CheckpointState:
        """What was put under a name by `nested`."""
        prefix = f"{name}/"
        arrays = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        return CheckpointState(self.facts[name], arrays)

    @classmethod
    def nested(cls, **parts: CheckpointState) -> CheckpointState:
        """One of several, each under its name."""
        arrays = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.arrays.items()}
        return cls({name: part.facts for name, part in parts.items()}, arrays)


def write_checkpoint(folder: Path, state: CheckpointState, about: Mapping[str, Any]) -> None:
    """Adds a checkpoint, `000007.npz`, which appears whole or not at all, and keeps the last two. `about` says which
    job it is of."""
    folder.mkdir(exist_ok=True)
    numbers = _numbers(folder)
    number = numbers[-1] + 1 if numbers else 1
    unfinished = folder / f".{os.getpid()}"
    text = json.dumps({"about": about, "facts": state.facts}).encode()
    try:
        with unfinished.open("wb") as file:
            np.savez(file, facts=np.frombuffer(text, np.uint8), **state.arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(_path(folder, number))
    finally:
        unfinished.unlink(missing_ok=True)
    for old in numbers[: 1 - KEPT]:
        _path(folder, old).unlink(missing_ok=True)


def read_checkpoint(folder: Path, *about: Mapping[str, Any]) -> CheckpointState | None:
    """The newest checkpoint that can be read and is of this very job; None if there is none. Nothing is unpickled.

    Args:
        folder: where `write` puts them.
        about: what the job may be known as.
    """
    for number in reversed(_numbers(folder)):
        path = _path(folder, number)
        with contextlib.suppress(FileNotFoundError):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                    told = json.loads(held["facts"].tobytes())
                    if told["about"] in about:
                        arrays = {name: held[name] for name in held.files if name != "facts"}
                        return CheckpointState(told["facts"], arrays)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.warning("%s: cannot be read (%s); going on from the one before", path, error)
    return None


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit())


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"
