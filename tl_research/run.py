"""Run: one directory with all there is to know about a run. It is data; nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_research.atomic import write_atomically
from tl_research.data.decode import Resize
from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras

State = Literal["running", "done", "failed", "interrupted"]


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text, floats to 8 significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{cell:.8g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()


def versions() -> dict[str, str]:
    """Versions of what can change a number, for the record."""
    found = {"version_python": platform.python_version()}
    for package in ("tl_research", "tensorflow", "keras", "numpy", "pillow", "scikit-learn"):
        try:
            found[f"version_{package}"] = version(package)
        except PackageNotFoundError:  # a clone that was never installed, or a package of another name: tensorflow-cpu
            found[f"version_{package}"] = getattr(sys.modules.get(package), "__version__", "unknown")
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

    @classmethod
    def claim(cls, directory: Path) -> Run:
        """Takes a directory for one run, by creating its `status.json` exclusively.

        Raises:
            InputError: there is a run already, or the folder cannot be written.
        """
        run = cls(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / "status.json").open("x"):
                pass
        except OSError as error:
            if isinstance(error, FileExistsError) and directory.is_dir():
                why = "there is a run in it already; name another directory"
            else:
                why = f"cannot be written ({error.strerror})"
            raise InputError(f"hydra.run.dir={directory}: {why}") from None
        run.set_status("running")
        return run

    @classmethod
    def open(cls, directory: Path | str) -> Run:
        """An ended run, for reading. Raises `InputError` if the directory holds none."""
        directory = Path(directory).expanduser()
        if not (directory / "status.json").is_file():
            raise InputError(f"{directory}: not a run directory (it has no status.json)")
        metrics = directory / "metrics.json"
        return cls(directory, json.loads(metrics.read_text()) if metrics.is_file() else {})

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`: `state`, `reason`, `pid`, `started`, `ended`. A run whose process has died
        reads as interrupted."""
        found = json.loads((self.directory / "status.json").read_text() or '{"state": "interrupted"}')
        if found["state"] == "running" and found.get("host") == platform.node() and not _alive(found["pid"]):
            found |= {"state": "interrupted", "reason": "its process ended without a word"}
        return found

    def set_status(self, state: State, reason: str | None = None) -> None:
        """Records where the run stands. Never raises for a full disk: the error that it would hide matters more."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        path = self.directory / "status.json"
        started = json.loads(path.read_text() or "{}").get("started", now)
        status = {"state": state, "reason": reason, "pid": os.getpid(), "host": platform.node(), "started": started}
        text = json.dumps(status | {"ended": None if state == "running" else now}, indent=2) + "\n"
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

    def write_history(self) -> None:
        """`history.csv`: one row per epoch over all stages."""
        header = list(dict.fromkeys(key for row in self.history for key in row))
        rows = [[row.get(key, "") for key in header] for row in self.history]
        self.write_csv("history.csv", header, rows)

    def write_model(self, model: keras.Model) -> None:
        """`model.keras`, under its name only once it is whole."""
        temporary = self.directory / ".unfinished.keras"
        try:
            model.save(temporary)
            temporary.replace(self.directory / "model.keras")
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def resize(self) -> Resize:
        """How the run brought images to the network's size."""
        import yaml

        config = yaml.safe_load((self.directory / "config.yaml").read_text()) or {}
        return config.get("data", {}).get("resize", "squash")

    def class_names(self) -> list[str]:
        """The classes in the order of the model's logits. Raises `InputError` for a run that did not get that far."""
        path = self.directory / "classes.json"
        if not path.is_file():
            raise InputError(f"{self.directory}: the run has no classes.json; its status is '{self.status['state']}'")
        return list(json.loads(path.read_text()))

    def model(self) -> keras.Model:
        """The trained classifier: RGB pixels 0-255 at the network's size -> logits."""
        from tl_research import weights

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
