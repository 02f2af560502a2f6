"""Identity of a job: its configuration, images, weights and code. Jobs of equal identity have equal results, so the
second need not run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.runs.checkpoint import CheckpointFolder
from tl_research.runs.run import Run
from tl_research.system.versions import versions

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

CODE_VERSION = "f1f47bd468f413a5"
"""Change it, to any other text, when the same command on the same images gives other weights or metrics, and whenever
another version changes (of the decoder, augmentation or engines): finished jobs of a sweep then run again, and
unfinished runs are not resumed. (The first value is a hash of the sources of commit aeace94.)"""

# Places of results and caches, what is shown, and whether a job runs at all, cannot change a number; missing weights
# show in the files.
_IRRELEVANT = (
    "choices",
    "directory",
    "fresh",
    "missing_weights",
    "report",
    "resume",
    "shard",
    "verbose",
    "backbone.chosen",
    "head.chosen",
    "callbacks.mlflow",
    "data.cache",
    "data.check",
    "data.ignore",
    "features.store",
    "features.max_gb",
    "trainer.checkpoint_minutes",
)

# Keys that came later, with the values at which they change nothing: jobs of before keep their identity. Where images
# have more than 8 bits, the images' own part of the identity shows `bits`.
_LATER = {
    "data.min_images": 3,
    "data.allow_leaks": False,
    "data.repeat": 0,
    "data.bits": "auto",
    **dict.fromkeys(("optimizer.average", "transfer.head.optimizer.average"), False),
    "transfer.choose_by": "validation",
    "transfer.interpolate": False,
    "transfer.ensemble": False,
    "backbone.layer": None,
    "head.whiten": False,
    "trainer.class_weights": None,
    "trainer.logit_adjustment": 0.0,
    **dict.fromkeys(
        ("data.train_dir", "data.val_dir", "data.test_dir", "data.label_by", "data.split_by", "data.window")
    ),
}

_WORDS = {"config": "config", "images": "images", "weights": "weights", "code": "code version"}

OLDER = "made by an older version; its images and weights cannot be compared"


@dataclass(frozen=True)
class Identity:
    """A job in parts: SHA-256 in hexadecimal, and versions of packages and of our code. `opaque` is the single hash of
    an older version, which its checkpoints hold."""

    config: str
    images: str
    weights: str
    packages: dict[str, str]
    code: str
    opaque: str | None = None

    @classmethod
    def of(cls, stored: Any) -> Identity | None:
        """Read the result of `as_dict`; None for anything else."""
        known = {key.name for key in fields(cls)}
        if not isinstance(stored, Mapping) or not (known - {"opaque"} <= set(stored) <= known):
            return None
        return cls(**stored)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data, for `status.json`."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def differences(self, other: Identity) -> list[str]:
        """Name the parts in which two identities differ, except packages."""
        return [word for part, word in _WORDS.items() if getattr(self, part) != getattr(other, part)]

    def package_changes(self, other: Identity) -> list[str]:
        """List the packages whose versions have changed from this to the other, as `keras 3.15.1 -> 3.16.0`."""
        before, now = self.packages, other.packages
        return [
            f"{name.removeprefix('version_')} {before.get(name)} -> {now.get(name)}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]


@dataclass(frozen=True)
class Comparison:
    """The changes since a run was begun, in words, and warnings of lesser ones."""

    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    opaque: str | None = None
    """The `Identity.opaque` of the run."""


def identity(config: Mapping[str, Any], data: DataModule, files: Iterable[Path]) -> Identity:
    """Identify a job.

    Args:
        config: resolved, as `Experiment.config`.
        data: images count by content, order, label and split, not by path.
        files: the backbone's weights and models.
    """
    weights = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    return Identity(
        config=hashlib.sha256(json.dumps(_relevant(config), sort_keys=True).encode()).hexdigest(),
        images=_images(data),
        weights=weights.hexdigest(),
        packages=versions(),
        code=CODE_VERSION,
    )


def compare(run: Run, job: Identity, config: Mapping[str, Any], data: DataModule) -> Comparison:
    """Compare a job, by its identity, configuration and data, with an earlier run. The run's `config.yaml` may have
    been overwritten since `earlier_config` was read."""
    stored = run.status.get("identity")
    if not stored:  # the run ended before it had one, or, if done, only extracted features
        return Comparison(["command"] if run.status["state"] == "done" else [])
    if isinstance(stored, str):
        keys = changed_keys(run.earlier_config or run.config, config)
        changed = [*_named(["config"] if keys else [], run, config), *_other_images(run, data)]
        return Comparison(changed, [] if changed else [OLDER], stored)
    known = Identity.of(stored)
    if known is None:
        return Comparison(["identity"])
    changed, packages = _named(known.differences(job), run, config), known.package_changes(job)
    warnings = [f"package versions have changed since: {', '.join(packages)}"] if packages and not changed else []
    return Comparison(changed, warnings, known.opaque)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the keys in which two configurations differ, as far as these can change a result."""
    one, other = (dict(_leaves(_relevant(config))) for config in (before, now))
    missing = object()
    return sorted(key for key in {*one, *other} if one.get(key, missing) != other.get(key, missing))


def _named(parts: list[str], run: Run, config: Mapping[str, Any]) -> list[str]:
    """Add the changed keys of the configuration to its name, if they are known and few. If `config.yaml` itself was
    edited, Hydra's record of the command may show which."""
    before = run.earlier_config or run.config
    keys = changed_keys(before, config)
    if not keys and run.noted_config:
        unresolved = {key for key, value in _leaves(run.noted_config) if "${" in str(value)}
        keys = [key for key in changed_keys(run.noted_config, config) if key not in unresolved]
    return [f"config ({', '.join(keys)})" if part == "config" and 0 < len(keys) <= 5 else part for part in parts]


def _other_images(run: Run, data: DataModule) -> list[str]:
    """Compare all that older versions recorded of their images: the classes, and the size of each split."""
    try:
        if run.class_names() != list(data.class_names):
            return ["images (classes)"]
    except InputError:  # it ended before they were recorded
        return []
    counts = {split: len(data.indices(split)) for split in ("train", "val", "test")}
    known = Run.open(run.directory).metrics
    if not known:
        state = CheckpointFolder(run.directory / "checkpoints", {"identity": run.status["identity"]}).read()
        known = state.facts["run"]["metrics"] if state else {}
    other = [split for split, count in counts.items() if known.get(f"num_{split}", count) != count]
    return [f"images ({', '.join(other)})"] if other else []


def _images(data: DataModule) -> str:
    groups = None if data.groups is None else data.groups.tolist()
    labels = json.dumps([list(data.class_names), data.labels.tolist(), data.split_of.tolist(), groups])
    return hashlib.sha256(labels.encode() + b"".join(map(data.row_digest, range(len(data))))).hexdigest()


def _relevant(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Drop keys that cannot change a number, and the modules of our own classes."""
    return {
        key: _relevant_value(key, value, f"{prefix}{key}.")
        for key, value in config.items()
        if f"{prefix}{key}" not in _IRRELEVANT and _LATER.get(f"{prefix}{key}", ...) != value
    }


def _relevant_value(key: str, value: Any, prefix: str) -> Any:
    if isinstance(value, Mapping):
        return _relevant(value, prefix)
    if isinstance(value, list):
        return [_relevant_value("", item, prefix) for item in value]
    if key in ("_target_", "build") and str(value).startswith("tl_research."):
        return str(value).replace(":", ".").rpartition(".")[2]  # a class that moves to another module stays itself
    return value


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
