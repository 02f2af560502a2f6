"""Read a run's directory. It is data: nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tl_research.data.decode import Resize
from tl_research.data.pixel_range import PixelRange
from tl_research.errors import InputError
from tl_research.models.weights.licences import describe_weights
from tl_research.runs.status import STATUS, read_status

if TYPE_CHECKING:
    import keras


@dataclass
class RunCommand:
    """The command that began a run, as Hydra recorded it in the run's directory."""

    directory: Path

    @property
    def noted_config(self) -> dict[str, Any]:
        """Read the configuration as Hydra recorded it when a command began the run, some values not yet resolved; empty
        if a program began it."""
        return read_mapping(self.directory / ".hydra" / "config.yaml")

    @cached_property
    def overrides(self) -> list[str]:
        """List the overrides of the command that began the run; empty if a program began it."""
        return self._noted_overrides or []

    @property
    def from_command(self) -> bool:
        """Return whether a command began the run, and not a program."""
        return self._noted_overrides is not None

    @cached_property
    def _noted_overrides(self) -> list[str] | None:
        overrides = _read_yaml(self.directory / ".hydra" / "overrides.yaml")
        return [str(override) for override in overrides] if isinstance(overrides, list) else None

    @property
    def command(self) -> str | None:
        """Give the command that repeats the run; None if a program began it."""
        words = ["python", "train.py", *self.config_options, *without_fresh(self.overrides)]
        return shlex.join(words) if self.from_command else None

    @property
    def config_options(self) -> list[str]:
        """Give the `--config-dir` and `--config-name` options of the command that began the run."""
        noted = read_noted_hydra(self.directory)
        sources = noted.get("runtime", {}).get("config_sources", [])
        folders = [source["path"] for source in sources if source.get("provider") == "command-line"]
        name = noted.get("job", {}).get("config_name", "config")
        options = [text for folder in folders for text in ("--config-dir", str(folder))]
        return [*options, *(["--config-name", str(name)] if name not in (None, "config") else [])]


@dataclass
class RunReader(RunCommand):
    """The contents of a run directory; `metrics` are those of `metrics.json`, empty if there is none."""

    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Open a run for reading. Raises `InputError` if the directory holds none."""
        directory = Path(directory).expanduser()
        if not (directory / STATUS).is_file():
            raise InputError(f"{directory}: {_why_no_run(directory)}")
        run = cls(directory)
        run.metrics = read_metrics(directory)
        return run

    @property
    def status(self) -> dict[str, Any]:
        """Read `status.json`, see `read_status`."""
        return read_status(self.directory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Read the resolved configuration; empty if it was not written or is damaged."""
        return read_mapping(self.directory / "config.yaml")

    @property
    def resize(self) -> Resize:
        """Give the run's way to resize images to the network's size."""
        return self.config.get("data", {}).get("resize", "squash")

    @property
    def weights(self) -> dict[str, str | None]:
        """Read `weights.json`, see `describe_weights`; of a run of version 0.1 made from its configuration."""
        return read_json(self.directory / "weights.json") or describe_weights(self.config.get("backbone", {}))

    @property
    def shows_pictures(self) -> bool:
        """Return whether reports may show images of the run (`report.thumbnails`)."""
        return bool((self.config.get("report") or {}).get("thumbnails", True))

    def answers(self, name: str) -> list[dict[str, str]]:
        """Read `predictions.csv` or `validation.csv`; empty if there is none. Raises `InputError` for another table."""
        rows = list(read_rows(self.directory / name))
        if rows and (missing := {"path", "split", "label", "prediction"} - rows[0].keys()):
            raise InputError(
                f"{self.directory / name}: has no column {sorted(missing)[0]!r}, so it is not what the run wrote; "
                f"python train.py resume={self.directory} fresh=true makes the run again"
            )
        return rows

    @property
    def pixel_range(self) -> PixelRange:
        """Give the range of values that the run made 0 to 255, of images with more than 8 bits a channel."""
        known = read_json(self.directory / "pixel_range.json") or self.config.get("data", {})
        window, bits = known.get("window"), known.get("bits", "auto")
        return PixelRange(16 if bits == "auto" else bits, tuple(window) if window else None)

    def class_names(self) -> list[str]:
        """Read the classes in the order of the model's logits. Raises `InputError` if the run has none yet."""
        path = self.directory / "classes.json"
        if not path.is_file():
            raise InputError(_lacking(path))
        return list(json.loads(path.read_text()))

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """Read `calibration.json`; a run without one, as of version 0.1, has a temperature of 1 and no scores."""
        return {"temperature": 1.0, "scores": []} | read_json(self.directory / "calibration.json")

    def model_file(self) -> Path:
        """Give the path of the classifier. Raises `InputError` if there is none."""
        path = self.directory / "model.keras"
        if not path.is_file():
            raise InputError(_lacking(path))
        return path

    def model(self) -> keras.Model:
        """Load the classifier: RGB pixels 0-255 at the network's size -> logits. Raises `InputError` if there is
        none."""
        from tl_research.models import weights

        return weights.load_model(self.model_file())


def answering_backbone(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Give the configuration of the network in a run's model from the run's own and its metrics: of `auto` what was
    chosen, of several side by side the one that was fine-tuned, where it answers alone; else all, with the `name` and
    the `preprocessing` of each."""
    backbone = config.get("backbone", {})
    backbone = backbone.get("chosen") or backbone
    parts = backbone.get("parts") or []
    if backbone.get("weights") is None:
        parts = [part | {"weights": None} for part in parts]
    if metrics.get("members") == ["tuned"]:
        parts = [part for part in parts if part["name"] == metrics.get("tuned_backbone")] or parts
    if len(parts) < 2:
        return dict(parts[0] if parts else backbone)
    each = {key: dict.fromkeys(str(part[key]) for part in parts) for key in ("name", "preprocessing")}
    return backbone | {"name": " + ".join(each["name"]), "preprocessing": " and ".join(each["preprocessing"])}


def _lacking(path: Path) -> str:
    state = read_status(path.parent)["state"]
    anew = " fresh=true" * (state == "done")  # as of a candidate of backbone=auto, which has no model yet
    advice = "wait until it is done" if state == "running" else f"python train.py resume={path.parent}{anew}"
    return f"{path.parent}: the run has no {path.name}; its status is '{state}': {advice}"


def read_metrics(directory: Path) -> dict[str, Any]:
    """Read `metrics.json`; empty where it is missing or damaged, which must not hide the other runs of a folder."""
    return read_json(directory / "metrics.json")


def read_selection(directory: Path) -> dict[str, Any]:
    """Read `selection.json`, which `backbone=auto` writes: what was `chosen`, why, and the `candidates`; else empty."""
    return read_json(directory / "selection.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where the file is missing, damaged or holds something else."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text()))
    return {}


def _why_no_run(directory: Path) -> str:
    if not directory.is_dir():
        return f"not a run directory: it {'is a file' if directory.exists() else 'does not exist'}"
    below = islice(
        (path.parent for pattern in ("*/", "*/*/", "*/*/*/") for path in directory.glob(pattern + STATUS)), 3
    )
    names = ", ".join(map(str, below))
    return f"not a run directory (it has no {STATUS}){f'; there are runs below it, such as {names}' if names else ''}"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read the rows of a CSV file up to where it is damaged; none where it is missing."""
    with contextlib.suppress(OSError, ValueError, csv.Error), path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; empty where the file is missing, damaged or holds something else."""
    content = _read_yaml(path)
    return content if isinstance(content, dict) else {}


def read_noted_hydra(directory: Path) -> dict[str, Any]:
    """Read Hydra's own part of a run's configuration as recorded; empty if a program began the run."""
    noted = read_mapping(directory / ".hydra" / "hydra.yaml").get("hydra")
    return noted if isinstance(noted, dict) else {}


def _read_yaml(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        return yaml.load(path.read_text(), loader)
    return None


def without_fresh(overrides: Iterable[str]) -> list[str]:
    """Drop `fresh`, which would replace the run: the other overrides repeat its job."""
    return [text for text in overrides if text.lstrip("+").partition("=")[0] != "fresh"]
