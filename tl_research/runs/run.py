"""Run: the directory of a run while it is recorded."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_research.errors import InputError
from tl_research.runs.checkpoint import CheckpointFolder
from tl_research.runs.reader import RunReader, read_mapping, read_metrics
from tl_research.runs.status import LOCK, STATUS, RunState, write_status
from tl_research.system.files import write_atomically
from tl_research.system.locks import Lock, try_lock

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

Existing = Literal["refuse", "resume", "continue", "replace"]

Phase = Callable[[str], AbstractContextManager[None]]
"""Times a block under a name: `Run.phase`."""

FILES = (
    "status.json",
    "config.yaml",
    "metrics.json",
    "classes.json",
    "history.csv",
    "folds.csv",
    "predictions.csv",
    "validation.csv",
    "set_aside.csv",
    "pixel_range.json",
    "data_check.json",
    "selection.json",
    "candidates",
    "mistakes.json",
    "calibration.json",
    "half_heads.json",
    "weights.json",
    "model_card.md",
    "mlflow.json",
    "model.keras",
    ".unfinished.keras",
    "tensorboard",
    "export",
    "check",
    "checkpoints",
)
"""The files of a run. Others in its directory are never removed."""


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table as CSV, see `csv_lines`."""
    return csv_lines([header]) + csv_lines(rows)


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV, floats to 8 significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[f"{cell:.8g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()


@dataclass
class Run(RunReader):
    """A run directory being recorded (`claim`) or read (`open`).

    Files: `config.yaml`, `status.json`, `metrics.json`, `history.csv`, `predictions.csv`, `classes.json`,
    `model.keras`, `tensorboard/`; `validation.csv` where the saved head has also been fitted on the validation images.
    """

    kept: bool = False
    """Whether it is an earlier run that is done and stays as it is."""
    resumes: bool = False
    """Whether it is an earlier, unfinished run that may continue from its last checkpoint."""
    untouched: bool = False
    """Whether nothing may be written to an earlier run yet: it may be of another job."""
    earlier_config: dict[str, Any] = field(default_factory=dict)
    """The configuration of an earlier run, empty if it is damaged."""
    _identity: dict[str, Any] = field(default_factory=dict)
    _lock: Lock | None = None
    _seconds_within: float = 0.0

    @classmethod
    def claim(cls, directory: Path, existing: Existing = "refuse") -> Run:
        """Take a directory, created if need be, for one run, by the lock on its `.lock`, until `close` or the end of
        the process.

        Args:
            existing: how to treat a run that is in it already. `refuse`; `resume`: a done one is `kept`, any other
                `resumes`; `continue`: the same, but nothing is written before `adopt_or_restart` has found it to be of
                the same job; `replace`: begin it anew.

        Raises:
            InputError: there is a run already, another process uses it, or the folder cannot be written.
        """
        run = cls(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            run._lock = try_lock(directory / LOCK)
            exists = (directory / STATUS).exists()
        except OSError as error:
            raise InputError(f"hydra.run.dir={directory}: cannot be written ({error.strerror})") from None
        if exists and existing == "refuse":
            run.close()
            raise InputError(f"hydra.run.dir={directory}: there is a run in it already; name another directory")
        if run._lock is None:
            raise InputError(f"hydra.run.dir={directory}: another process is at work in it")
        if exists and existing in ("resume", "continue"):
            run.kept = run.status["state"] == "done"
            run.resumes = not run.kept
            run.untouched = existing == "continue"
            run.earlier_config = read_mapping(directory / "config.yaml")
        else:
            run._begin()
        if run.resumes and not run.untouched:
            run.set_status("running")
        return run

    @classmethod
    def record_death(cls, directory: Path, state: RunState, reason: str) -> None:
        """Record the end of a run whose process could not do so itself."""
        directory.mkdir(parents=True, exist_ok=True)
        write_status(directory, state, reason)

    def adopt_or_restart(self, identity: Mapping[str, Any], changed: Sequence[str] = ()) -> bool:
        """Give the run its identity (`Identity.as_dict`). Returns True for a kept run of this very job, whose metrics
        are then read. A kept run of another job, and one to resume without a checkpoint of this job, begins anew: its
        files are removed.

        Raises:
            InputError: something has `changed` (`identity.compare`) since a run that is to continue was begun. Nothing
                has been written to it.
        """
        self._identity = dict(identity)
        if self.untouched and changed:
            what = " and ".join(filter(None, [", ".join(changed[:-1]), changed[-1]]))
            raise InputError(
                f"resume={self.directory}: changed since the run began: {what}; add fresh=true to begin it anew"
            )
        self.untouched = False
        if self.kept:
            if not changed:
                self.metrics = read_metrics(self.directory)
                return True
            log.info("%s: data, weights or code have changed since it was done; it runs again", self.directory)
            self._begin()
        elif self.resumes and (changed or self.checkpoints.read() is None):
            if changed:
                log.info("%s: data, weights or code have changed since; it begins anew", self.directory)
            self._begin()
        if not self.resumes:
            self._identity.pop("opaque", None)  # nothing of the older version is left
        self.set_status("running", identity=self._identity)
        return False

    @property
    def checkpoints(self) -> CheckpointFolder:
        """Give the checkpoints of this very job. They remain readable after an update of packages."""
        about = {part: value for part, value in self._identity.items() if part not in ("packages", "opaque")}
        older = [{"identity": self._identity["opaque"]}] if "opaque" in self._identity else []
        return CheckpointFolder(self.directory / "checkpoints", about, older)

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _begin(self) -> None:
        for name in FILES:
            if name == "config.yaml":  # to be overwritten; without it the run could not be resumed meanwhile
                continue
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.kept = self.resumes = False
        self.set_status("running")

    def set_status(self, state: RunState, reason: str | None = None, identity: Mapping[str, Any] | None = None) -> None:
        """Write `status.json`, see `write_status`."""
        write_status(self.directory, state, reason, identity)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside, less those of phases within it, to the metric `seconds_<name>`: summed over all
        names, no second counts twice."""
        before, self._seconds_within, began = self._seconds_within, 0.0, time.perf_counter()
        yield
        seconds, key = time.perf_counter() - began, f"seconds_{name}"
        self.metrics[key] = round(self.metrics.get(key, 0.0) + seconds - self._seconds_within, 3)
        self._seconds_within = before + seconds

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`, the resolved configuration."""
        import yaml

        write_atomically(
            self.directory / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        )

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        write_atomically(self.directory / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file of the run."""
        write_atomically(self.directory / name, as_csv(header, rows))

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write `history.csv`, a row an epoch over all stages."""
        header = list(dict.fromkeys(key for row in history for key in row))
        self.write_csv("history.csv", header, [[row.get(key, "") for key in header] for row in history])

    def write_model(self, model: keras.Model) -> None:
        """Write `model.keras` atomically."""
        temporary = self.directory / ".unfinished.keras"
        try:
            model.save(temporary)
            temporary.replace(self.directory / "model.keras")
        finally:
            temporary.unlink(missing_ok=True)
