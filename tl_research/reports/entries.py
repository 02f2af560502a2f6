"""The runs below a folder as a leaderboard sees them: settings, state, metrics, and the data set of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_research.metrics.classification import monitored
from tl_research.runs.reader import read_noted_hydra
from tl_research.runs.run import Run

# Keys whose values are repetitions of one configuration, not configurations of their own.
REPEATED = ("seed", "data.fold", "data.repeat", "data.split_seed")

NO_CHOICE = ("fresh", "missing_weights", "verbose")
"""Keys that change how a job runs, not what it computes."""

MOST_CHARACTERS = 80  # of a reason; the whole reason is below the table


@dataclass(frozen=True)
class Entry:
    """One run: its choices beside the defaults, its configuration, its state and its metrics."""

    directory: Path
    choices: Mapping[str, str]
    options: Mapping[str, str]
    """The option of each group, chosen or default."""
    config: Mapping[str, Any]
    state: str
    reason: str | None
    updated: float
    """The time of the last change of its status, in seconds, by the clock of the file system."""
    number: int
    """Its number among the jobs or trials of its sweep."""
    metrics: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Entry:
        """Read a run."""
        noted = read_noted_hydra(run.directory)
        chosen = noted.get("runtime", {}).get("choices", {})
        options = {str(key): str(value) for key, value in chosen.items() if value and not str(key).startswith("hydra/")}
        options |= run.config.get("choices", {})
        number = noted.get("job", {}).get("num")  # ??? for a single run
        choices = dict(text.lstrip("+~").partition("=")[::2] for text in run.overrides)
        choices = {k: v for k, v in (choices if run.from_command else options).items() if k not in NO_CHOICE}
        choices.setdefault("seed", str(run.config.get("seed", 0)))
        status, updated = run.status, (run.directory / "status.json").stat().st_mtime
        return cls(
            run.directory, choices, options, run.config, status["state"], status["reason"], updated,
            number if isinstance(number, int) else 0,
            run.metrics,
        )  # fmt: skip

    @property
    def monitor(self) -> str:
        """The metric that ranks it, on validation images: test images never rank."""
        return monitored(str(self.config.get("monitor", "val_accuracy")).replace("test_", "val_"), self.metrics)

    @property
    def seconds(self) -> float:
        """Sum the seconds of its phases."""
        return sum(float(value) for key, value in self.metrics.items() if key.startswith("seconds_"))

    @property
    def label(self) -> str:
        """Its state, with the reason if there is one: `skipped: no weights`."""
        if not self.reason:
            return self.state
        reason = self.reason.partition(":")[0] if self.state == "skipped" else self.reason
        label = f"{self.state}: {reason}"
        return label if len(label) <= MOST_CHARACTERS else f"{label[: MOST_CHARACTERS - 3]}..."

    def setting(self, key: str) -> str:
        """Give the value of a key, chosen or default, as it is typed on the command line; empty if it has no such
        key."""
        missing: Any = object()
        value: Any = self.options.get(key, self.config)
        for part in key.split(".") if value is self.config else ():
            value = value.get(part, missing) if isinstance(value, Mapping) else missing
        if value is missing or isinstance(value, Mapping):
            name = str(value.get("_target_", "")).rpartition(".")[2] if isinstance(value, Mapping) else ""
            return self.choices.get(key, name)
        return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

    @cached_property
    def repetition(self) -> tuple[str, ...]:
        """Its seed, fold and split seed."""
        return tuple(self.setting(key) for key in REPEATED)

    @property
    def source(self) -> str:
        """Name the source of its images: a folder, an archive, a data set, or else the kind of source."""
        data = self.config.get("data")
        if not isinstance(data, Mapping):
            return next((self.choices[key] for key in ("data.root", "data.archive", "data") if key in self.choices), "")
        known = next((data[key] for key in ("root", "archive", "dataset") if data.get(key)), None)
        return str(known or self.options.get("data") or str(data.get("_target_", "")).rpartition(".")[2])


def titles(entries: Sequence[Entry]) -> list[str]:
    """Name each run by the settings that differ, or by its directory if there are none."""
    keys = dict.fromkeys(key for entry in entries for key in entry.choices)
    differ = [key for key in keys if len({entry.setting(key) for entry in entries}) > 1]
    return [
        " ".join(f"{key}={entry.setting(key)}" for key in differ if entry.setting(key)) or entry.directory.name
        for entry in entries
    ]


def by_data_set(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Divide runs by the images they were made from, in order of appearance. A data set is known by its content
    (`dataset` of `metrics.json`); where a run has no such record, by that of a run from the same source, else by the
    source; where even that is not known, it is taken to be the first. The names are those of the sources."""
    recorded = {entry.source: str(entry.metrics["dataset"]) for entry in entries if entry.metrics.get("dataset")}
    keys = [str(entry.metrics.get("dataset") or recorded.get(entry.source, entry.source)) for entry in entries]
    groups: dict[str, list[Entry]] = {}
    for key, entry in zip(keys, entries, strict=True):
        groups.setdefault(key or next(filter(None, keys), ""), []).append(entry)
    names = [group[0].source for group in groups.values()]
    return {
        name if names.count(name) == 1 else f"{name} ({key})": group
        for name, (key, group) in zip(names, groups.items(), strict=True)
    }
