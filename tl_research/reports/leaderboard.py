"""The leaderboard: all runs below a folder, one table a data set, one row for each configuration, over its seeds and
folds.

It is made from run directories alone: their `status.json`, `metrics.json`, `config.yaml` and Hydra's records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_research.errors import InputError
from tl_research.metrics.classification import direction
from tl_research.metrics.intervals import Z, half_width, mean_interval
from tl_research.reports.entries import REPEATED, Entry, by_data_set, titles
from tl_research.runs.run import Run, as_csv
from tl_research.system.files import write_atomically

COLUMNS = ("rank", "runs", "val", "val_interval", "test", "test_interval", "against_best", "seconds", "parameters",
           "trainable", "features_computed", "status", "directory", "data")  # fmt: skip


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
        """Compute a 95 % interval: of one run for other images (Wilson; accuracies only), of several for other
        repetitions and other images (`mean_interval`)."""
        values = self.values_of(metric)
        if len(values) > 1:
            return mean_interval(values, self.count(metric), math.inf if metric.endswith("loss") else 1.0)
        if len(values) == 1 and f"{metric}_low" in self.done[0].metrics:
            metrics = self.done[0].metrics
            return metrics[f"{metric}_low"], metrics[f"{metric}_high"]
        return None

    def count(self, metric: str) -> int | None:
        """Count the images of which an accuracy is a share; None for other metrics. Runs share their images, but for
        the validation images of different folds."""
        split, _, kind = metric.partition("_")
        by_fold = {
            entry.setting("data.fold") if split == "val" else "": entry.metrics.get(f"num_{split}") or 0
            for entry in self.done
        }
        return sum(by_fold.values()) or None if kind == "accuracy" else None

    def values_of(self, metric: str) -> list[float]:
        """List a metric of the runs that have it."""
        return [float(e.metrics[metric]) for e in self.done if e.metrics.get(metric) is not None]

    def best(self, monitor: str) -> Entry:
        """Return its best finished run, the earliest of equals; or its last run, if none is finished."""
        measured = [entry for entry in self.done if entry.metrics.get(monitor) is not None]
        return min(measured, key=lambda e: order(monitor, e.metrics[monitor], e.number), default=self.entries[-1])


def order(monitor: str, value: float, number: int, *, random: bool = False) -> tuple[bool, bool, float, int]:
    """Make the key that sorts results from the best: those with random weights after the others, those without a value
    last, the earlier of equals first. `number` is that of the job or trial."""
    sign = 1 if direction(monitor) == "min" else -1
    return math.isnan(value), random, sign * round(value, 9), number  # a mean may differ in the last bit


def collect(folder: Path) -> list[Entry]:
    """Read all runs below a folder, by path. Raises `InputError` if there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file' if folder.exists() else 'does not exist'}; give a folder with runs")
    found = {status.parent: None for status in sorted(folder.rglob("status.json"))}
    inner = {each for each in found if each.parent.name == "candidates" and each.parent.parent in found}  # of a run
    entries = [Entry.of(Run.open(directory)) for directory in found if directory not in inner]
    if not entries:
        raise InputError(f"{folder}: no runs below this folder (none has a status.json)")
    return entries


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Keep one run for each repetition of a configuration: the last finished one, or else the last."""
    last: dict[tuple[str, ...], Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.state == "done", entry.updated)):
        last[entry.repetition] = entry
    chosen = {id(entry) for entry in last.values()}
    return [entry for entry in entries if id(entry) in chosen]


@dataclass(frozen=True)
class Leaderboard:
    """Rows in order: the best first, then those with random weights, then those without a metric; `keys` are the keys
    that differ between them, `data` names the data set that all have in common."""

    keys: Sequence[str]
    rows: Sequence[Row]
    monitor: str
    data: str = ""

    @classmethod
    def of(cls, entries: Sequence[Entry], data: str = "") -> Leaderboard:
        """Group repetitions and rank by the first run's `monitor`, on validation images: test images never rank."""
        names = dict.fromkeys(key for entry in entries for key in entry.choices if key not in REPEATED)
        keys = [key for key in names if len({entry.setting(key) for entry in entries}) > 1]
        groups: dict[tuple[str, ...], list[Entry]] = {}
        for entry in entries:
            groups.setdefault(tuple(entry.setting(key) for key in keys), []).append(entry)
        monitors = {entry.monitor: None for entry in entries if entry.metrics} or {entries[0].monitor: None}
        monitor = "cv_accuracy" if "cv_accuracy" in monitors else next(iter(monitors))
        rows = [Row(values, _once(group)) for values, group in groups.items()]
        rows.sort(key=lambda row: order(monitor, row.mean(monitor), row.best(monitor).number, random=row.random))
        return cls(keys, rows, monitor, data)

    @classmethod
    def for_each_data_set(cls, entries: Sequence[Entry]) -> list[Leaderboard]:
        """Make a leaderboard for each data set, since results on different images do not compare."""
        return [cls.of(group, data) for data, group in by_data_set(entries).items()]

    @property
    def test_metric(self) -> str:
        """The monitored metric, on test images."""
        return re.sub("^(val|cv)_", "test_", self.monitor)

    def against_best(self, row: Row) -> str:
        """Compare a row with the best one over the repetitions that both have: the mean difference and its 95 %
        interval; `*` if the interval excludes 0. Of an accuracy the noise of the images counts as if the two had seen
        different ones, which is too much rather than too little."""
        best_row = next(other for other in self.rows if other.random is row.random)
        best = {e.repetition: e.metrics.get(self.monitor) for e in best_row.done}
        pairs = [(e.metrics.get(self.monitor), best.get(e.repetition)) for e in row.done]
        differences = [float(a) - float(b) for a, b in pairs if a is not None and b is not None]
        if row is best_row or len(differences) < 2:
            return ""
        mean, half, count = float(np.mean(differences)), half_width(differences), row.count(self.monitor)
        if count:
            shares = np.array([row.mean(self.monitor), best_row.mean(self.monitor)])
            half = math.hypot(half, Z * math.sqrt((shares * (1 - shares)).sum() / count))
        # Without any noise, as where seeds change nothing, there is nothing to compare the difference with.
        return f"{mean:+.3f} ± {half:.3f}{' *' if abs(mean) > half > 0 else ''}"

    def ranks(self) -> list[int | None]:
        """Rank the rows: equal values share a rank, rows with random weights have ranks of their own, and rows without
        a result have none."""
        values = [order(self.monitor, row.mean(self.monitor), 0, random=row.random) for row in self.rows]
        ranked = sum(not (is_nan or random) for is_nan, random, *_ in values)
        return [None if value[0] else values.index(value) + 1 - ranked * value[1] for value in values]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Make the header and the cells, as text. The directory is that of the row's best run."""
        lines = []
        for rank, row in zip(self.ranks(), self.rows, strict=True):
            labels = [entry.label for entry in row.entries]
            status = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))
            seconds = [entry.seconds for entry in row.done]
            lines.append([
                str(rank or ""),
                *row.values,
                str(len(row.entries)),
                *_cells(row, self.monitor),
                *_cells(row, self.test_metric),
                self.against_best(row),
                f"{np.mean(seconds):.1f}" if seconds else "",
                *(f"{row.mean(key):.0f}" if row.values_of(key) else "" for key in ("num_parameters", "num_trainable")),
                f"{sum(row.values_of('features_computed')):.0f}",
                f"{status}, random weights" if row.random else status,
                str(row.best(self.monitor).directory.absolute()),
                self.data,
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


def write_leaderboards(boards: Sequence[Leaderboard], folder: Path) -> None:
    """Write `leaderboard.csv`, with the columns of all data sets, and `leaderboard.md`, a table a data set."""
    tables = [board.table() for board in boards]
    keys = dict.fromkeys(key for board in boards for key in board.keys)
    names = dict.fromkeys(name for header, _ in tables for name in header if name not in keys)
    columns = ["rank", *keys, *list(names)[1:]]
    cells = [
        {key: row.entries[0].setting(key) for key in keys} | dict(zip(header, line, strict=True))
        for board, (header, lines) in zip(boards, tables, strict=True)
        for row, line in zip(board.rows, lines, strict=True)
    ]
    write_atomically(folder / "leaderboard.csv", as_csv(columns, [[row.get(c, "") for c in columns] for row in cells]))
    text = []
    for board, (header, lines) in zip(boards, tables, strict=True):
        text += [f"## {board.data}", ""] if len(boards) > 1 else []
        text += [_line(header), _line(["---"] * len(header)), *map(_line, lines), ""]
        text += [*(f"- {line}" for line in board.failures()), ""] if board.failures() else []
    write_atomically(folder / "leaderboard.md", "\n".join(text))


def _cells(row: Row, metric: str) -> tuple[str, str]:
    interval = row.interval(metric)
    mean = row.mean(metric)
    return "" if math.isnan(mean) else f"{mean:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}" if interval else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
