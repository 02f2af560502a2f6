"""Identity of a job: what it was asked to do, on which images, from which weights, by which code. Two jobs of one
identity come to one result, so the second need not run."""

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
"""Change it, to any other text, when the same command on the same images comes to other weights or metrics, and
whenever another version changes (of the decoder, augmentation or engines): finished jobs of a sweep then run again, and
unfinished runs are not resumed. (The first value is a hash of the sources of commit aeace94.)"""

# Where results and caches go, and what decides whether a job runs at all, cannot change a number; whether weights were
# there shows in the files.
_NOT_ASKED = (
    "choices",
    "directory",
    "fresh",
    "missing_weights",
    "resume",
    "shard",
    "verbose",
    "data.cache",
    "features.store",
    "features.max_gb",
    "trainer.checkpoint_minutes",
)

_WORDS = {"config": "config", "images": "images", "weights": "weights", "code": "code version"}

OLDER = "made by an older version; its images and weights cannot be compared"


@dataclass(frozen=True)
class Identity:
    """A job in parts, each a SHA-256 in hexadecimal, but for the versions of packages and of our code. `opaque` is the
    one hash by which an older version knew the run: checkpoints that it left hold that."""

    config: str
    images: str
    weights: str
    packages: dict[str, str]
    code: str
    opaque: str | None = None

    @classmethod
    def of(cls, stored: Any) -> Identity | None:
        """What `as_dict` gave; None for anything else."""
        known = {key.name for key in fields(cls)}
        if not isinstance(stored, Mapping) or not (known - {"opaque"} <= set(stored) <= known):
            return None
        return cls(**stored)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for `status.json`."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def differences(self, other: Identity) -> list[str]:
        """The parts in which two differ, in words; packages are compared apart."""
        return [word for part, word in _WORDS.items() if getattr(self, part) != getattr(other, part)]

    def package_changes(self, other: Identity) -> list[str]:
        """Packages whose versions have changed from this one to the other, as `keras 3.15.1 -> 3.16.0`."""
        ours, theirs = self.packages, other.packages
        return [
            f"{name.removeprefix('version_')} {ours.get(name)} -> {theirs.get(name)}"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class Comparison:
    """What has changed since a run was begun, in words, and what is only worth a warning."""

    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    opaque: str | None = None
    """The one hash by which an older version knew the run."""


def identity(config: Mapping[str, Any], data: DataModule, files: Iterable[Path]) -> Identity:
    """Identify a job.

    Args:
        config: resolved, as `Experiment.config`.
        data: its images count by their content, in order, with label and split; not by where they lie.
        files: those whose content the backbone is made of.
    """
    weights = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    return Identity(
        config=hashlib.sha256(json.dumps(_asked(config), sort_keys=True).encode()).hexdigest(),
        images=_images(data),
        weights=weights.hexdigest(),
        packages=versions(),
        code=CODE_VERSION,
    )


def compare(run: Run, job: Identity, config: Mapping[str, Any], data: DataModule) -> Comparison:
    """Compare a job with the run that is in a directory.

    Args:
        run: the run, whose `config.yaml` may have been written anew since `earlier_config` was read.
        job: the identity of the job.
        config: what the job is asked for.
        data: what the job has to learn from.
    """
    stored = run.status.get("identity")
    if not stored:  # it did not get so far; one that is done has computed features alone
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
    """Keys of two configurations that make them two jobs."""
    one, other = (dict(_leaves(_asked(config))) for config in (before, now))
    return sorted(key for key in {*one, *other} if one.get(key, _leaves) != other.get(key, _leaves))


def _named(parts: list[str], run: Run, config: Mapping[str, Any]) -> list[str]:
    """With the keys of the configuration that have changed, where they are known and few. Where `config.yaml` itself
    was edited, Hydra's note of the command may tell which."""
    before = run.earlier_config or run.config
    keys = changed_keys(before, config)
    if not keys and run.noted_config:
        unresolved = {key for key, value in _leaves(run.noted_config) if "${" in str(value)}
        keys = [key for key in changed_keys(run.noted_config, config) if key not in unresolved]
    return [f"config ({', '.join(keys)})" if part == "config" and 0 < len(keys) <= 5 else part for part in parts]


def _other_images(run: Run, data: DataModule) -> list[str]:
    """What older versions noted of their images: the classes, and how many there are of each split."""
    try:
        if run.class_names() != list(data.class_names):
            return ["images (classes)"]
    except InputError:  # it did not get so far
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
    told = json.dumps([list(data.class_names), data.labels.tolist(), data.split_of.tolist(), groups])
    return hashlib.sha256(told.encode() + b"".join(data.digests)).hexdigest()


def _asked(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration without what cannot change a number, and with our classes by their names alone."""
    return {
        key: _plain(key, value, f"{prefix}{key}.")
        for key, value in config.items()
        if f"{prefix}{key}" not in _NOT_ASKED
    }


def _plain(key: str, value: Any, prefix: str) -> Any:
    if isinstance(value, Mapping):
        return _asked(value, prefix)
    if isinstance(value, list):
        return [_plain("", item, prefix) for item in value]
    if key in ("_target_", "build") and str(value).startswith("tl_research."):
        return str(value).replace(":", ".").rpartition(".")[2]  # a class that moves to another module stays itself
    return value


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
