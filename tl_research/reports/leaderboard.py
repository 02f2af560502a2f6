"""The leaderboard: all runs below a folder, one row for each configuration, over its seeds and folds.

It is made from run directories alone: their `status.json`, `metrics.json`, `config.yaml` and Hydra's overrides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.errors import InputError
from tl_research.metrics.classification import direction
from tl_research.runs.run import Run, as_csv
from tl_research.system.files import write_atomically

# Keys whose values are repetitions of one configuration, not configurations of their own.
REPEATED = ("seed", "data.fold", "data.split_seed")

NO_CHOICE = ("fresh", "missing_weights", "verbose")
"""Keys that change how a job runs, not what it computes."""

MOST_CHARACTERS = 80  # of a reason; the whole reason is below the table

COLUMNS = ("rank", "runs", "val", "val_interval", "test", "test_interval", "against_best", "seconds", "parameters",
           "trainable", "features_computed", "status")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run: its choices beside the defaults, its state and its metrics."""

    directory: Path
    choices: Mapping[str, str]
    state: str
    reason: str | None
    updated: float
    """The time of the last change of its status, in seconds, by the clock of the file system."""
    monitor: str
    metrics: Mapping[str, Any]

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
        return f"{self.state}: {reason}"[:MOST_CHARACTERS]

    @property
    def repetition(self) -> tuple[str, ...]:
        """Its seed, fold and split seed."""
        return tuple(self.choices.get(key, "") for key in REPEATED)


@dataclass(frozen=True)
class Row:
    """One configuration: the values of the keys that differ, and its runs."""

    values: tuple[str, ...]
    entries: Sequence[Entry]

    @property
    def done(self) -> list[Entry]:
        """Its finished runs."""
        return [entry for entry in self.entries if entry.state == "done"]

    @property
    def random(self) -> bool:
        """Whether random weights replaced missing ones: such a row is ranked apart."""
        return any(bool(entry.metrics.get("random_weights")) for entry in self.entries)

    def mean(self, metric: str) -> float:
        """Average a metric over the runs that have it; NaN for none."""
        values = self.values_of(metric)
        return float(np.mean(values)) if values else math.nan

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Compute a 95 % interval: of the mean over repetitions (Student's t; not valid for other images), or over one
        run's images (Wilson; accuracies only)."""
        values = self.values_of(metric)
        if len(values) > 1:
            mean, half = float(np.mean(values)), half_width(values)
            return max(mean - half, 0.0), mean + half if metric.endswith("loss") else min(mean + half, 1.0)
        if len(values) == 1 and f"{metric}_low" in self.done[0].metrics:
            metrics = self.done[0].metrics
            return metrics[f"{metric}_low"], metrics[f"{metric}_high"]
        return None

    def values_of(self, metric: str) -> list[float]:
        """List a metric of the runs that have it."""
        return [float(e.metrics[metric]) for e in self.done if e.metrics.get(metric) is not None]


def half_width(values: Sequence[float]) -> float:
    """Compute half of the 95 % interval of a mean of two or more values."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def collect(folder: Path) -> list[Entry]:
    """Read all runs below a folder, by path. Raises `InputError` if there is none."""
    entries = [_entry(Run.open(status.parent)) for status in sorted(folder.rglob("status.json"))]
    if not entries:
        raise InputError(f"{folder}: no runs below this folder (none has a status.json)")
    return entries


def _entry(run: Run) -> Entry:
    choices = dict(text.lstrip("+~").partition("=")[::2] for text in run.overrides)
    if not run.from_command:
        choices = dict(run.config.get("choices", {}))
    choices = {key: value for key, value in choices.items() if key not in NO_CHOICE}
    choices.setdefault("seed", str(run.config.get("seed", 0)))
    status = run.status
    return Entry(
        directory=run.directory,
        choices=choices,
        state=status["state"],
        reason=status["reason"],
        updated=(run.directory / "status.json").stat().st_mtime,
        monitor=str(run.config.get("monitor", "val_accuracy")),
        metrics=run.metrics,
    )


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Keep one run for each repetition of a configuration: the last finished one, or else the last."""
    last: dict[tuple[str, ...], Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.state == "done", entry.updated)):
        last[entry.repetition] = entry
    chosen = {id(entry) for entry in last.values()}
    return [entry for entry in entries if id(entry) in chosen]


def titles(entries: Sequence[Entry]) -> list[str]:
    """Name each run by the choices that differ, or by its directory if there are none."""
    keys = dict.fromkeys(key for entry in entries for key in entry.choices)
    differ = [key for key in keys if len({entry.choices.get(key) for entry in entries}) > 1]
    return [
        " ".join(f"{key}={entry.choices[key]}" for key in differ if key in entry.choices) or entry.directory.name
        for entry in entries
    ]


@dataclass(frozen=True)
class Leaderboard:
    """Rows in order: the best first, then those with random weights, then those without a metric; `keys` are the keys
    that differ between them."""

    keys: Sequence[str]
    rows: Sequence[Row]
    monitor: str

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Leaderboard:
        """Group repetitions and rank by the first run's `monitor`, on validation images: test images never rank."""
        names = dict.fromkeys(key for entry in entries for key in entry.choices if key not in REPEATED)
        keys = [key for key in names if len({entry.choices.get(key) for entry in entries}) > 1]
        groups: dict[tuple[str, ...], list[Entry]] = {}
        for entry in entries:
            groups.setdefault(tuple(entry.choices.get(key, "") for key in keys), []).append(entry)
        monitor = entries[0].monitor.replace("test_", "val_")
        sign = 1 if direction(monitor) == "min" else -1
        rows = [Row(values, _once(group)) for values, group in groups.items()]
        rows.sort(key=lambda row: (math.isnan(row.mean(monitor)), row.random, sign * row.mean(monitor)))
        return cls(keys, rows, monitor)

    @property
    def test_metric(self) -> str:
        """The monitored metric, on test images."""
        return self.monitor.replace("val_", "test_")

    def against_best(self, row: Row) -> str:
        """Compare a row with the best one over the repetitions that both have: the mean difference and its 95 %
        interval; `*` if the interval excludes 0."""
        best_row = next(other for other in self.rows if other.random is row.random)
        best = {e.repetition: e.metrics.get(self.monitor) for e in best_row.done}
        pairs = [(e.metrics.get(self.monitor), best.get(e.repetition)) for e in row.done]
        differences = [float(a) - float(b) for a, b in pairs if a is not None and b is not None]
        if row is best_row or len(differences) < 2:
            return ""
        mean, half = float(np.mean(differences)), half_width(differences)
        # Without any noise, as where seeds change nothing, there is nothing to compare the difference with.
        return f"{mean:+.3f} ± {half:.3f}{' *' if abs(mean) > half > 0 else ''}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Make the header and the cells, as text. Rows with random weights have ranks of their own."""
        lines = []
        ranks = {random: itertools.count(1) for random in (False, True)}
        for row in self.rows:
            labels = [entry.label for entry in row.entries]
            status = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))
            seconds = [entry.seconds for entry in row.done]
            lines.append([
                str(next(ranks[row.random])) if row.done else "",
                *row.values,
                str(len(row.entries)),
                *_cells(row, self.monitor),
                *_cells(row, self.test_metric),
                self.against_best(row),
                f"{np.mean(seconds):.1f}" if seconds else "",
                *(f"{row.mean(key):.0f}" if row.values_of(key) else "" for key in ("num_parameters", "num_trainable")),
                f"{sum(row.values_of('features_computed')):.0f}",
                f"{status}, random weights" if row.random else status,
            ])  # fmt: skip
        named = {"val": self.monitor, "test": self.test_metric}
        return ["rank", *self.keys, *(named.get(column, column) for column in COLUMNS[1:])], lines

    def failures(self) -> list[str]:
        """Make a line, with the reason, for each run that is not done."""
        entries = [entry for row in self.rows for entry in row.entries]
        return [
            f"{title}: {entry.state}: {entry.reason or 'no reason given'}"
            for title, entry in zip(titles(entries), entries, strict=True)
            if entry.state not in ("done", "running")
        ]

    def write(self, folder: Path) -> None:
        """Write `leaderboard.csv` and `leaderboard.md` to a folder."""
        header, lines = self.table()
        write_atomically(folder / "leaderboard.csv", as_csv(header, lines))
        text = [_line(header), _line(["---"] * len(header)), *map(_line, lines)]
        failed = [f"- {line}" for line in self.failures()]
        write_atomically(folder / "leaderboard.md", "\n".join([*text, *(["", *failed] if failed else [])]) + "\n")


def _cells(row: Row, metric: str) -> tuple[str, str]:
    interval = row.interval(metric)
    mean = row.mean(metric)
    return "" if math.isnan(mean) else f"{mean:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}" if interval else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
