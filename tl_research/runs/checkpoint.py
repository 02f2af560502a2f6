"""Checkpoints of an unfinished run, to continue as if it had not been interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
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
        """Take one part out of a state made by `nested`."""
        prefix = f"{name}/"
        arrays = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        return CheckpointState(self.facts[name], arrays)

    @classmethod
    def nested(cls, **parts: CheckpointState) -> CheckpointState:
        """Make one state of several, each under its name."""
        arrays = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.arrays.items()}
        return cls({name: part.facts for name, part in parts.items()}, arrays)


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one job, `000007.npz` and so on, in a folder that need not exist."""

    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    """The job; checkpoints of other jobs are not read."""
    also: Sequence[Mapping[str, Any]] = ()
    """What older versions called the same job."""

    def write(self, state: CheckpointState) -> None:
        """Add a checkpoint atomically, and keep the last two."""
        self.folder.mkdir(exist_ok=True)
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 1
        unfinished = self.folder / f".{os.getpid()}"
        text = json.dumps({"about": self.about, "facts": state.facts}).encode()
        try:
            with unfinished.open("wb") as file:
                np.savez(file, facts=np.frombuffer(text, np.uint8), **state.arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path(number))
        finally:
            unfinished.unlink(missing_ok=True)
        for old in numbers[: 1 - KEPT]:
            self._path(old).unlink(missing_ok=True)

    def read(self) -> CheckpointState | None:
        """Read the newest checkpoint of this job that is not damaged; None if there is none. Nothing is unpickled."""
        for number in reversed(self._numbers()):
            path = self._path(number)
            with contextlib.suppress(FileNotFoundError):
                try:
                    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                        content = json.loads(archive["facts"].tobytes())
                        if content["about"] in (self.about, *self.also):
                            arrays = {name: archive[name] for name in archive.files if name != "facts"}
                            return CheckpointState(content["facts"], arrays)
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                    log.warning("%s: cannot be read (%s); going on from the one before", path, error)
        return None

    def remove(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.npz") if path.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"
