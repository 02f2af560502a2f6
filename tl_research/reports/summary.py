"""The leaderboard and the path of the report, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_research.reports.leaderboard import Leaderboard
from tl_research.system.console import make_table, show, show_table

ONLY_IN_FILES = ("parameters", "trainable", "features_computed", "directory", "data")


def show_leaderboards(boards: Sequence[Leaderboard], folder: Any, *, failures: bool = True) -> None:
    """Show the leaderboard of each data set, with the directory of its best run and the runs that failed."""
    for board in boards:
        monitor = f"{board.monitor} on {board.data}" if len(boards) > 1 else board.monitor
        best = [f"the best: {board.rows[0].best(board.monitor).directory}"] if board.rows[0].done else []
        show_leaderboard(monitor, *board.table(), [*best, *(board.failures() if failures else ())], folder)


def show_leaderboard(
    monitor: str, header: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str], folder: Any
) -> None:
    """Show configurations, the best first, then notes and the folder."""
    shown = [i for i, column in enumerate(header) if column not in ONLY_IN_FILES]
    table = make_table(f"leaderboard by {monitor}", *(header[i] for i in shown))
    for line in lines:
        table.add_row(*(line[i] for i in shown))
    show_table(table)
    show(*notes, folder)


def show_report_path(path: Any) -> None:
    """Show the path of the report."""
    show(f"report: {path}")
