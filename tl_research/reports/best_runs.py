"""Choose the best runs below a folder, as its leaderboard ranks them."""

from __future__ import annotations

import math
from pathlib import Path

from tl_research.errors import InputError
from tl_research.reports.entries import Entry
from tl_research.reports.leaderboard import Leaderboard, collect, order
from tl_research.runs.run import Run

MOST = 5
"""Runs to choose where nothing is said."""


def best_runs(folder: Path, count: int | None = None) -> tuple[list[Run], list[str]]:
    """Choose the `count` (default: up to `MOST`) runs below a folder that are best by validation, the best first, and
    make a line for each run that is passed over, with the reason.

    Raises:
        InputError: the runs are of several data sets, or there are fewer than `count`, or than two.
    """
    entries = collect(folder)
    reasons = [_reason(entry) for entry in entries]
    usable = [entry for entry, reason in zip(entries, reasons, strict=True) if not reason]
    passed = [
        f"{entry.directory}: passed over: {reason}" for entry, reason in zip(entries, reasons, strict=True) if reason
    ]
    if any(not entry.metrics.get("random_weights") for entry in usable):
        passed += [f"{entry.directory}: passed over: random weights" for entry in usable if _is_random(entry)]
        usable = [entry for entry in usable if not _is_random(entry)]
    if len(usable) < 2:
        raise InputError(
            f"{folder}: {len(usable)} run(s) below it can be in an ensemble, which needs two; "
            f"{'; '.join(passed) or 'give the folder of a sweep'}"
        )
    boards = Leaderboard.for_each_data_set(usable)
    if len(boards) > 1:
        names = ", ".join(board.data for board in boards)
        raise InputError(f"{folder}: its runs are of {len(boards)} data sets ({names}); give a folder with runs of one")
    (board,) = boards
    done = [entry for row in board.rows for entry in row.done]
    ranked = sorted(done, key=lambda entry: order(board.monitor, _value(entry, board.monitor), entry.number))
    if count is not None and count > len(ranked):
        raise InputError(f"--best {count}: there are {len(ranked)} runs below {folder} to choose from")
    return [Run.open(entry.directory) for entry in ranked[: count or MOST]], passed


def _value(entry: Entry, monitor: str) -> float:
    value = entry.metrics.get(monitor)
    return math.nan if value is None else float(value)


def _is_random(entry: Entry) -> bool:
    return bool(entry.metrics.get("random_weights"))


def _reason(entry: Entry) -> str:
    """Say why a run cannot be in an ensemble; empty if it can."""
    if "ensemble" in entry.config:
        return "an ensemble"
    if entry.state != "done":
        return entry.label
    missing = [
        name for name in ("model.keras", "classes.json", "predictions.csv") if not (entry.directory / name).is_file()
    ]
    return f"no {missing[0]}" if missing else ""
