"""Run: one directory with all there is to know about a run. It is data; nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_research.data.decode import Resize
from tl_research.errors import InputError
from tl_research.runs.checkpoint import CheckpointState, read_checkpoint, write_checkpoint
from tl_research.system.files import write_atomically
from tl_research.system.locks import Lock, is_held, try_lock

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

RunState = Literal["running", "done", "failed", "diverged", "skipped", "pruned", "interrupted"]

Existing = Literal["refuse", "resume", "continue", "replace"]

FILES = (
    "status.json",
    "config.yaml",
    "metrics.json",
    "classes.json",
    "history.csv",
    "predictions.csv",
    "validation.csv",
    "set_aside.csv",
    "mistakes.json",
    "model.keras",
    ".unfinished.keras",
    "tensorboard",
    "checkpoints",
)
"""All that a run writes. What else lies in its directory is not ours to remove."""


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text, floats to 8 significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{cell:.8g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()


_PACKAGES = {name: (name,) for name in ("tensorflow", "keras", "numpy", "pillow", "scikit-learn", "openvino")} | {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly")
}


def versions() -> dict[str, str]:
    """Versions of what can change a number, for the record; nothing is imported."""
    from tl_research import __version__  # which imports this module

    found = {"version_python": platform.python_version(), "version_tl_research": __version__}
    for package, distributions in _PACKAGES.items():
        found[f"version_{package}"] = "unknown"
        for distribution in distributions:
            with contextlib.suppress(PackageNotFoundError):
                found[f"version_{package}"] = version(distribution)
    return found


@dataclass
class Run:
    """A run directory being filled (`claim`) or read (`open`).

    Files: `config.yaml`, `status.json`, `metrics.json`, `history.csv`, `predictions.csv`, `classes.json`,
    `model.keras`, `tensorboard/`; `validation.csv` where the saved head has also been fitted on the validation images.
    """

    directory: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: bool = False
    """Whether it is an earlier one that is done, of which nothing has been touched."""
    resumes: bool = False
    """Whether it is an earlier one that has not come to its end, and may go on from its last checkpoint."""
    untouched: bool = False
    """Whether nothing has been written to an earlier one yet, which it may still turn out not to be."""
    earlier_config: dict[str, Any] = field(default_factory=dict)
    """What an earlier one was asked for, as far as that is known."""
    _identity: dict[str, Any] | None = None
    _lock: Lock | None = None

    @classmethod
    def claim(cls, directory: Path, existing: Existing = "refuse") -> Run:
        """Takes a directory for one run, by the lock on its `.lock`, until `close` or the end of the process.

        Args:
            directory: made if need be.
            existing: what if there is a run in it already: `refuse`; `resume`: one that is done is `kept`, any other
                `resumes`; `continue`: so, too, but nothing is written before `identify` has found it to be the same
                job; `replace`: it is begun anew in any case.

        Raises:
            InputError: there is a run already, another process is at work in it, or the folder cannot be written.
        """
        run = cls(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            run._lock = try_lock(directory / ".lock")
            there = (directory / "status.json").exists()
        except OSError as error:
            raise InputError(f"hydra.run.dir={directory}: cannot be written ({error.strerror})") from None
        if there and existing == "refuse":
            run.close()
            raise InputError(f"hydra.run.dir={directory}: there is a run in it already; name another directory")
        if run._lock is None:
            raise InputError(f"hydra.run.dir={directory}: another process is at work in it")
        if there and existing in ("resume", "continue"):
            run.kept = run.status["state"] == "done"
            run.resumes = not run.kept
            run.untouched = existing == "continue"
            run.earlier_config = run._read_config()
        else:
            run._begin()
        if run.resumes and not run.untouched:
            run.set_status("running")
        return run

    @classmethod
    def open(cls, directory: Path | str) -> Run:
        """An ended run, for reading. Raises `InputError` if the directory holds none."""
        directory = Path(directory).expanduser()
        if not (directory / "status.json").is_file():
            raise InputError(f"{directory}: not a run directory (it has no status.json)")
        run = cls(directory)
        run._read_metrics()
        return run

    @classmethod
    def record_death(cls, directory: Path, state: RunState, reason: str) -> None:
        """For whoever started a process: how the run ended that it could not end itself."""
        directory.mkdir(parents=True, exist_ok=True)
        cls(directory).set_status(state, reason)

    def adopt_or_restart(self, identity: Mapping[str, Any], changed: Sequence[str] = ()) -> bool:
        """Says which job this is. True if the run that was kept is this very job, whose metrics it then has; a run kept
        of another, or one to be resumed that has no checkpoint of this job, is begun anew.

        Args:
            identity: the job's, in parts (`Identity.as_dict`).
            changed: what has changed since an earlier run was begun (`identity.compare`).

        Raises:
            InputError: something has changed of a run that is to go on. Nothing has been written to it.
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
                self._read_metrics()
                return True
            log.info("%s: data, weights or code have changed since it was done; it runs again", self.directory)
            self._begin()
        elif self.resumes and (changed or self.read_checkpoint() is None):
            if changed:
                log.info("%s: data, weights or code have changed since; it begins anew", self.directory)
            self._begin()
        if not self.resumes:
            self._identity.pop("opaque", None)  # of what it was before nothing is left
        self.set_status("running", identity=self._identity)
        return False

    def close(self) -> None:
        """Lets others have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _begin(self) -> None:
        for name in FILES:
            if name == "config.yaml":  # it is about to be written anew, and without it nobody could go on
                continue
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.kept = self.resumes = False
        self.set_status("running")

    def _read_metrics(self) -> None:
        self.metrics = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # a damaged file must not hide the other runs
            self.metrics = dict(json.loads((self.directory / "metrics.json").read_text()))

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`: `state`, `reason`, `pid`, `started`, `ended`, `identity`. A run whose process
        has died reads as interrupted."""
        found = self._stored_status()
        if found["state"] == "running" and not self._at_work(found):
            found |= {"state": "interrupted", "reason": "its process ended without a word"}
        return found

    def _stored_status(self) -> dict[str, Any]:
        nothing = {"state": "interrupted", "reason": None}
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return nothing | dict(json.loads((self.directory / "status.json").read_text()))
        return nothing

    def _at_work(self, status: Mapping[str, Any]) -> bool:
        try:
            return is_held(self.directory / ".lock")
        except OSError:  # a run without a lock, or a file system without locks
            return status.get("host") != platform.node() or _alive(status["pid"])

    def set_status(self, state: RunState, reason: str | None = None, identity: Mapping[str, Any] | None = None) -> None:
        """Records where the run stands. Never raises for a full disk: the error that it would hide matters more."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        before = self._stored_status()
        status = {
            "state": state,
            "reason": reason,
            "pid": os.getpid() if state == "running" else before.get("pid", os.getpid()),
            "host": platform.node() if state == "running" else before.get("host", platform.node()),
            "started": before.get("started", now),
            "ended": None if state == "running" else now,
            "identity": identity or before.get("identity"),
        }
        path = self.directory / "status.json"
        text = json.dumps(status, indent=2) + "\n"
        try:
            write_atomically(path, text)
        except OSError:  # on a full disk there is no room for a second file, but the first has its place
            with contextlib.suppress(OSError):
                path.write_text(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to the metric `seconds_<name>`."""
        began = time.perf_counter()
        yield
        key = f"seconds_{name}"
        self.metrics[key] = round(self.metrics.get(key, 0.0) + time.perf_counter() - began, 3)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """`config.yaml`: what was asked for, resolved."""
        import yaml

        write_atomically(
            self.directory / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        )

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file of the run."""
        write_atomically(self.directory / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A CSV file of the run."""
        write_atomically(self.directory / name, as_csv(header, rows))

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`history.csv`: one row per epoch over all stages."""
        header = list(dict.fromkeys(key for row in history for key in row))
        self.write_csv("history.csv", header, [[row.get(key, "") for key in header] for row in history])

    def write_checkpoint(self, state: CheckpointState) -> None:
        """Keeps all that it takes to go on from here."""
        write_checkpoint(self.directory / "checkpoints", state, self._about)

    def read_checkpoint(self) -> CheckpointState | None:
        """The last one of this very job, if there is one."""
        opaque = (self._identity or {}).get("opaque")
        older = [{"identity": opaque}] if opaque else []
        return read_checkpoint(self.directory / "checkpoints", self._about, *older)

    @property
    def _about(self) -> dict[str, Any]:
        """The job that a checkpoint is of. Packages of other versions can go on from it."""
        return {part: value for part, value in (self._identity or {}).items() if part not in ("packages", "opaque")}

    def drop_checkpoints(self) -> None:
        """A run that has come to its end needs them no more."""
        shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)

    def write_model(self, model: keras.Model) -> None:
        """`model.keras`, under its name only once it is whole."""
        temporary = self.directory / ".unfinished.keras"
        try:
            model.save(temporary)
            temporary.replace(self.directory / "model.keras")
        finally:
            temporary.unlink(missing_ok=True)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if it was not written, or cannot be read."""
        return self._read_config()

    @property
    def noted_config(self) -> dict[str, Any]:
        """The configuration as Hydra noted it when a command began the run, some values not yet resolved; empty if a
        program began it."""
        found = self._yaml(".hydra/config.yaml")
        return found if isinstance(found, dict) else {}

    def _read_config(self) -> dict[str, Any]:
        found = self._yaml("config.yaml")
        return found if isinstance(found, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        """What the command said, beside the defaults, as Hydra notes it."""
        return self._noted or []

    @property
    def from_command(self) -> bool:
        """Whether a command began it, and not a program."""
        return self._noted is not None

    @cached_property
    def _noted(self) -> list[str] | None:
        found = self._yaml(".hydra/overrides.yaml")
        return [str(override) for override in found] if isinstance(found, list) else None

    @property
    def config_options(self) -> list[str]:
        """The `--config-dir` and `--config-name` of the command that began it."""
        noted = self._yaml(".hydra/hydra.yaml")
        hydra = noted.get("hydra", {}) if isinstance(noted, dict) else {}
        sources = hydra.get("runtime", {}).get("config_sources", [])
        folders = [source["path"] for source in sources if source.get("provider") == "command-line"]
        name = hydra.get("job", {}).get("config_name", "config")
        options = [text for folder in folders for text in ("--config-dir", str(folder))]
        return [*options, *(["--config-name", str(name)] if name not in (None, "config") else [])]

    def _yaml(self, name: str) -> Any:
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
            return yaml.load((self.directory / name).read_text(), loader)
        return None

    @property
    def resize(self) -> Resize:
        """How the run brought images to the network's size."""
        return self.config.get("data", {}).get("resize", "squash")

    def class_names(self) -> list[str]:
        """The classes in the order of the model's logits. Raises `InputError` for a run that did not get that far."""
        path = self.directory / "classes.json"
        if not path.is_file():
            raise InputError(f"{self.directory}: the run has no classes.json; its status is '{self.status['state']}'")
        return list(json.loads(path.read_text()))

    def model(self) -> keras.Model:
        """The trained classifier: RGB pixels 0-255 at the network's size -> logits."""
        from tl_research.models import weights

        path = self.directory / "model.keras"
        if not path.is_file():
            raise InputError(f"{self.directory}: the run has no model.keras; its status is '{self.status['state']}'")
        return weights.load_model(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def without_fresh(overrides: Iterable[str]) -> list[str]:
    """What of a command's overrides does its job again: all but `fresh`, which says to replace one."""
    return [text for text in overrides if text.lstrip("+").partition("=")[0] != "fresh"]
