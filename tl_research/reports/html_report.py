"""The report: what the runs below a folder come to, as one HTML file that opens offline.

It is made from run directories alone: what the leaderboard reads, `history.csv`, `predictions.csv`, `mistakes.json`.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import json
import math
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.metrics.classification import direction
from tl_research.reports.leaderboard import Entry, Leaderboard, Row, collect, half_width
from tl_research.runs.reader import without_fresh
from tl_research.runs.run import Run
from tl_research.system.files import write_atomically

Content = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("charts.js", "table.js", "plots.js", "report.js")
MOST_MISTAKES = 12

# A browser draws no more than this many points of a curve that anyone could tell apart; all curves share the second.
MOST_POINTS = 200
ALL_POINTS = 20_000

# A numeric key whose values spread wider than this gets a logarithmic axis.
WIDE = 8


def write_report(folder: Path) -> Path:
    """`report.html` in a folder of runs, or in a run's own directory. Raises `InputError` if there is none."""
    path = folder / "report.html"
    write_atomically(path, page(content(folder, collect(folder))))
    return path


def page(shown: Content) -> str:
    """The page that shows some content. Only the script we wrote may run in it, and nothing may be fetched."""
    script = "".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "report.css").read_text()
    parts = {"STYLE": style, "SCRIPT": script, "DIGEST": digest, "DATA": embedded(shown)}
    # One pass over the template alone: what is put in is never searched for places to put more in.
    return re.sub("@([A-Z]+)@", lambda match: parts[match[1]], (TEMPLATES / "report.html").read_text())


def embedded(data: Any) -> str:
    """JSON that can stand in a <script> element whatever texts it holds: ASCII without a single `<`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content(folder: Path, entries: Sequence[Entry]) -> Content:
    """All that the page shows, as plain data. Rows and runs name each other by their places."""
    board = Leaderboard.of(entries)
    header, lines = board.table()
    points = min(MOST_POINTS, ALL_POINTS // len(entries))
    ordered = [entry for row in board.rows for entry in row.entries]
    ends = np.cumsum([len(row.entries) for row in board.rows])
    rows = [
        _row(row, board, cells) | {"runs": list(range(end - len(row.entries), end))}
        for row, cells, end in zip(board.rows, lines, map(int, ends), strict=True)
    ]
    effects = [_effect(key, board, board.rows) for key in range(len(board.keys))]
    return {
        "title": "/".join(folder.absolute().parts[-2:]),
        "folder": str(folder.absolute()),
        "again": shlex.join(["python", "-m", "tl_research", "report", str(folder.absolute())]),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "monitor": board.monitor,
        "test_metric": board.test_metric,
        "better": direction(board.monitor),
        "keys": list(board.keys),
        "header": header,
        "rows": rows,
        "runs": [_run(entry, folder, points) for entry in ordered],
        "effects": [effect for effect in effects if effect],
        "best": _best(board, ordered),
    }


def _row(row: Row, board: Leaderboard, cells: list[str]) -> Content:
    seconds = [entry.seconds for entry in row.done]
    return {
        "cells": cells,
        "values": list(row.values),
        "random": row.random,
        "val": _number(row.mean(board.monitor)),
        "val_interval": _interval(row.interval(board.monitor)),
        "test": _number(row.mean(board.test_metric)),
        "test_interval": _interval(row.interval(board.test_metric)),
        "seconds": _number(np.mean(seconds)) if seconds else None,
        "parameters": _number(row.mean("num_parameters")),
    }


def _run(entry: Entry, folder: Path, points: int) -> Content:
    run = Run(entry.directory)
    config = run.config
    overrides = without_fresh(run.overrides)
    status = _json(entry.directory / "status.json") or {}
    scores = {key: _number(value) for key, value in entry.metrics.items() if key.startswith(("val_", "test_", "cv_"))}
    return {
        "name": str(entry.directory.relative_to(folder)) if entry.directory != folder else folder.absolute().name,
        "state": entry.state,
        "reason": entry.reason,
        "scores": {key: value for key, value in scores.items() if not key.endswith(("_low", "_high"))},
        "seconds": _number(entry.seconds) if entry.state == "done" else None,
        "started": status.get("started"),
        "command": shlex.join(["python", "train.py", *run.config_options, *overrides]) if run.from_command else None,
        "data": _source(config.get("data")),
        "versions": {k.removeprefix("version_"): str(v) for k, v in entry.metrics.items() if k.startswith("version_")},
        "curve": _curve(entry.directory / "history.csv", points),
    }


def _source(data: Any) -> str | None:
    """Where a run's images came from: a folder, an archive, a data set's name, or else the kind of source."""
    if not isinstance(data, Mapping):
        return None
    told = next((data[key] for key in ("root", "archive", "dataset") if data.get(key)), data.get("_target_"))
    return None if told is None else str(told)


def _curve(path: Path, points: int) -> Content | None:
    """Columns of a history, thinned to so many epochs; `None` for fewer than two."""
    rows = list(_csv(path))
    if len(rows) < 2:
        return None
    kept = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, max(points, 2)).round().astype(int))]
    names = [name for name in rows[0] if f"val_{name}" in rows[0] or name.startswith("val_")]
    numbers = {name: [_number(row.get(name)) for row in kept] for name in ("epoch", *names)}
    return numbers | {"stage": [row.get("stage") or "" for row in kept]}


def _effect(place: int, board: Leaderboard, rows: Sequence[Row]) -> Content | None:
    """For each value of a swept key: its configurations, their mean, and the 95 % interval of that mean."""
    groups: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        if not math.isnan(row.mean(board.monitor)):
            groups.setdefault(row.values[place], []).append(at)
    if len(groups) < 2:
        return None
    given = [value for value in groups if value]
    numbers = [number for value in given if (number := _number(value)) is not None]
    numeric = 1 < len(given) == len(numbers)
    log = numeric and min(numbers) > 0 and max(numbers) > WIDE * min(numbers)
    described = [
        {"value": value, "x": _number(value) if numeric else None, "rows": members}
        | _mean(board.monitor, [rows[i] for i in members])
        for value, members in groups.items()
    ]
    return {"key": board.keys[place], "numeric": numeric, "log": log, "groups": described}


def _mean(monitor: str, rows: Sequence[Row]) -> Content:
    values = [row.mean(monitor) for row in rows]
    mean = float(np.mean(values))
    if len(rows) == 1:
        return {"mean": _number(mean), "interval": _interval(rows[0].interval(monitor))}
    half = half_width(values)
    top = math.inf if direction(monitor) == "min" else 1.0
    return {"mean": _number(mean), "interval": _interval((max(mean - half, 0.0), min(mean + half, top)))}


def _best(board: Leaderboard, entries: Sequence[Entry]) -> Content | None:
    """The best run's answers to the test images: how often which class was taken for which, and its worst mistakes.
    Random weights are best only where there is nothing else."""
    sign = 1 if direction(board.monitor) == "min" else -1
    judged = [
        (bool(entry.metrics.get("random_weights")), sign * value, place)
        for place, entry in enumerate(entries)
        if entry.state == "done" and (value := _number(entry.metrics.get(board.monitor))) is not None
    ]
    if not judged:
        return None
    *_, place = min(judged)
    directory = entries[place].directory
    counts, wrong = _answers(directory / "predictions.csv")
    kept = _json(directory / "mistakes.json")
    return {
        "run": place,
        "classes": _json(directory / "classes.json") or sorted({name for pair in counts for name in pair}),
        "counts": [[*pair, count] for pair, count in counts.items()],
        "num_wrong": len(wrong),
        "mistakes": kept if isinstance(kept, list) else sorted(wrong, key=_doubt)[:MOST_MISTAKES],
    }


def _answers(path: Path) -> tuple[Counter[tuple[str, str]], list[Content]]:
    """Of the test images in a `predictions.csv`: how many there are of each (label, prediction), and the wrong ones."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[Content] = []
    for row in _csv(path):
        label, prediction = row.get("label"), row.get("prediction")
        if row.get("split") == "test" and label is not None and prediction is not None:
            counts[label, prediction] += 1
            if label != prediction:
                sure = _number(row.get(f"p_{prediction}"))
                wrong.append({"path": row["path"], "label": label, "prediction": prediction, "probability": sure})
    return counts, wrong


def _doubt(mistake: Content) -> float:
    return -(mistake["probability"] or 0.0)


def _number(value: Any) -> float | None:
    """A finite number to six digits, or nothing: JSON knows no NaN."""
    with contextlib.suppress(TypeError, ValueError):
        if math.isfinite(found := float(value)):
            return float(f"{found:.6g}")
    return None


def _interval(found: tuple[float, float] | None) -> list[float | None] | None:
    return [_number(end) for end in found] if found else None


def _json(path: Path) -> Any:
    """A JSON file's content; `None` for one that is missing or damaged, which must not hide the other runs."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(), parse_constant=lambda _: None)
    return None


def _csv(path: Path) -> Iterator[dict[str, str]]:
    with contextlib.suppress(OSError, ValueError, csv.Error), path.open(newline="") as file:
        yield from csv.DictReader(file)
