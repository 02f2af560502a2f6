"""The report on the runs below a folder: one HTML file that opens offline.

It is made from run directories: the leaderboard's files, `history.csv`, `predictions.csv`, `calibration.json`,
`mistakes.json`; and shows the least sure images, where they still are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.evaluation.evaluate import thumbnail
from tl_research.metrics.by_class import curves_by_class, scores_by_class
from tl_research.metrics.classification import direction
from tl_research.metrics.intervals import mean_interval
from tl_research.reports.answered import read_answered
from tl_research.reports.entries import Entry, titles
from tl_research.reports.explanations import heat_maps
from tl_research.reports.leaderboard import Leaderboard, Row, collect
from tl_research.runs.reader import read_rows
from tl_research.runs.run import Run
from tl_research.system.files import write_atomically

Content = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("charts.js", "table.js", "plots.js", "answers.js", "report.js")
MOST_MISTAKES = 12
MOST_CURVES = 6

# More points of one curve cannot be told apart on the screen; all curves share the second number.
MOST_POINTS = 200
ALL_POINTS = 20_000

# If the largest value of a key is more than this multiple of the smallest, its axis is logarithmic.
WIDE = 8


def write_report(folder: Path, *, maps: bool = False) -> Path:
    """Write `report.html` to a folder of runs, or to one run's directory. With `maps` the best run's network is loaded
    to show which parts of images speak for its answers. Raises `InputError` if there is no run."""
    path = folder / "report.html"
    write_atomically(path, page(content(folder, collect(folder), maps=maps)))
    return path


def page(shown: Content) -> str:
    """Make the page for some content. Only our own script may run in it, and nothing may be fetched."""
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    parts = {"STYLE": style, "SCRIPT": script, "DIGEST": digest, "DATA": embedded(shown)}
    # One pass over the template alone, so that inserted text is never searched for placeholders.
    return re.sub("@([A-Z]+)@", lambda match: parts[match[1]], (TEMPLATES / "report.html").read_text(encoding="utf-8"))


def embedded(data: Any) -> str:
    """Make JSON that is safe in a <script> element, whatever it holds: ASCII without any `<`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content(folder: Path, entries: Sequence[Entry], *, maps: bool = False) -> Content:
    """Collect the content of the page as plain data: that of the first data set, and under `others` that of the others,
    of which the page shows one at a time."""
    points = min(MOST_POINTS, ALL_POINTS // len(entries))
    first, *others = (_content(folder, board, points, maps) for board in Leaderboard.for_each_data_set(entries))
    return first | {"others": others}


def _content(folder: Path, board: Leaderboard, points: int, maps: bool) -> Content:
    """Collect the content for one data set. Rows and runs refer to each other by index."""
    header, lines = board.table()
    ordered = [entry for row in board.rows for entry in row.entries]
    ends = np.cumsum([len(row.entries) for row in board.rows])
    rows = [
        _row(row, board, cells) | {"runs": list(range(end - len(row.entries), end))}
        for row, cells, end in zip(board.rows, lines, map(int, ends), strict=True)
    ]
    effects = [_effect(key, board, board.rows) for key in range(len(board.keys))]
    return {
        "data": board.data,
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
        "runs": [
            _run(entry, folder, points) | {"settings": title}
            for entry, title in zip(ordered, titles(ordered), strict=True)
        ],
        "effects": [effect for effect in effects if effect],
        "best": _best(board, ordered, maps),
    }


def _row(row: Row, board: Leaderboard, cells: list[str]) -> Content:
    seconds = [entry.seconds for entry in row.done]
    best = str(row.best(board.monitor).directory.absolute())
    return {
        "cells": cells,
        "values": list(row.values),
        "random": row.random,
        "predict": shlex.join(["python", "-m", "tl_research", "predict", best, "PHOTOS"]) if row.done else None,
        "val": _number(row.mean(board.monitor)),
        "val_interval": _interval(row.interval(board.monitor)),
        "test": _number(row.mean(board.test_metric)),
        "test_interval": _interval(row.interval(board.test_metric)),
        "seconds": _number(np.mean(seconds)) if seconds else None,
        "parameters": _number(row.mean("num_parameters")),
    }


def _run(entry: Entry, folder: Path, points: int) -> Content:
    run = Run(entry.directory)
    status = _json(entry.directory / "status.json") or {}
    scores = {key: _number(value) for key, value in entry.metrics.items() if key.startswith(("val_", "test_", "cv_"))}
    return {
        "name": str(entry.directory.relative_to(folder)) if entry.directory != folder else folder.absolute().name,
        "state": entry.state,
        "reason": entry.reason,
        "scores": {key: value for key, value in scores.items() if not key.endswith(("_low", "_high"))},
        "seconds": _number(entry.seconds) if entry.state == "done" else None,
        "started": status.get("started"),
        "command": run.command,
        "data": entry.source or None,
        "versions": {k.removeprefix("version_"): str(v) for k, v in entry.metrics.items() if k.startswith("version_")},
        "kept": _number(entry.metrics.get("best_epoch")),
        "curve": _curve(entry.directory / "history.csv", points, entry.metrics.get("best_epoch")),
    }


def _curve(path: Path, points: int, kept: Any) -> Content | None:
    """Read the columns of a history, thinned to `points` epochs and the one that the run has kept; None for fewer than
    two."""
    rows = list(read_rows(path))
    if len(rows) < 2:
        return None
    numbers_kept = [i for i, row in enumerate(rows) if row.get("epoch") == str(kept)]
    even = np.linspace(0, len(rows) - 1, max(points, 2)).round().astype(int)
    chosen = [rows[i] for i in np.unique([*even, *numbers_kept])]
    names = [name for name in rows[0] if f"val_{name}" in rows[0] or name.startswith("val_")]
    numbers = {name: [_number(row.get(name)) for row in chosen] for name in ("epoch", *names)}
    return numbers | {"stage": [row.get("stage") or "" for row in chosen]}


def _effect(column: int, board: Leaderboard, rows: Sequence[Row]) -> Content | None:
    """Collect, for each value of a swept key, its configurations, their mean, and the 95 % interval of the mean."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if not math.isnan(row.mean(board.monitor)):
            groups.setdefault(row.values[column], []).append(index)
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
    return {"key": board.keys[column], "numeric": numeric, "log": log, "groups": described}


def _mean(monitor: str, rows: Sequence[Row]) -> Content:
    values = [row.mean(monitor) for row in rows]
    if len(rows) == 1:
        interval = rows[0].interval(monitor)
    else:
        highest = math.inf if direction(monitor) == "min" else 1.0
        interval = mean_interval(values, rows[0].count(monitor), highest)
    return {"mean": _number(np.mean(values)), "interval": _interval(interval)}


def _best(board: Leaderboard, entries: Sequence[Entry], maps: bool) -> Content | None:
    """Collect the answers of the best run of the best row to the test images, and how far to trust them."""
    best = board.rows[0].best(board.monitor)
    if math.isnan(board.rows[0].mean(board.monitor)):
        return None
    run, answered = Run.open(best.directory), read_answered(best.directory)
    mistakes = _json(best.directory / "mistakes.json")
    found: Content = {
        "run": next(index for index, entry in enumerate(entries) if entry is best),
        "classes": [], "counts": [], "num_wrong": 0, "scores": [], "curves": {}, "mistakes": [], "unsure": [],
        "reliability": run.calibration.get("reliability"),
        "temperature": _number(run.calibration["temperature"]),
    }  # fmt: skip
    if answered:
        names, (labels, predicted) = answered.class_names, (answered.labels, answered.predicted)
        counts = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
        curves = curves_by_class(answered.probabilities, labels)
        found |= {
            "classes": names,
            "counts": [[names[label], names[prediction], count] for (label, prediction), count in counts.items()],
            "num_wrong": int(np.sum(labels != predicted)),
            "scores": scores_by_class(labels, predicted, len(names)),
            "curves": {kind: _worst_curves(of_kind, names) for kind, of_kind in curves.items()},
            "mistakes": mistakes if isinstance(mistakes, list) else answered.most_sure_mistakes(MOST_MISTAKES),
        }
        wrong = {str(answer.get("path")) for answer in found["mistakes"] if isinstance(answer, dict)}
        found["unsure"] = _with_thumbnails(run, answered.least_sure(MOST_MISTAKES, wrong))
    elif isinstance(mistakes, list):
        found["mistakes"] = mistakes
    if maps and run.shows_pictures and answered:
        answers = [*found["mistakes"], *found["unsure"]]
        shown = [answer for answer in answers if isinstance(answer, dict) and "path" in answer]
        heat = heat_maps(run, [Path(answer["path"]) for answer in shown])
        for answer in shown:
            answer["map"] = heat.get(answer["path"], "")
    return found


def _worst_curves(curves: dict[int | str, Content], names: Sequence[str]) -> list[Content]:
    """Take the mean curve and those of the classes with the smallest areas."""
    of_classes = sorted((key for key in curves if key != "macro"), key=lambda key: curves[key]["area"])
    return [
        {"name": names[key] if isinstance(key, int) else "mean", "area": _number(curves[key]["area"])}
        | {"y": [_number(y) for y in curves[key]["y"]]}
        for key in [*(["macro"] if len(curves) > 2 else []), *of_classes[:MOST_CURVES]]
    ]


def _with_thumbnails(run: Run, answers: list[Content]) -> list[Content]:
    if not run.shows_pictures:
        return answers
    return [answer | {"jpeg": thumbnail(Path(answer["path"]), run.pixel_range)} for answer in answers]


def _number(value: Any) -> float | None:
    """Round a finite number to six digits; None for all else, since JSON has no NaN."""
    with contextlib.suppress(TypeError, ValueError):
        if math.isfinite(number := float(value)):
            return float(f"{number:.6g}")
    return None


def _interval(ends: tuple[float, float] | None) -> list[float | None] | None:
    return [_number(end) for end in ends] if ends else None


def _json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or damaged, which must not hide the other runs."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(), parse_constant=lambda _: None)
    return None
