"""The leaderboard on the screen, and where the report is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_research.system.console import fits, make_table, show, show_table

ONLY_IN_FILES = ("parameters", "trainable", "features_computed")
LEAST_WANTED = ("seconds", "test_interval", "val_interval", "against_best")
"""Columns of a leaderboard that a narrow terminal can do without, the first of them first."""


def show_leaderboard(
    monitor: str, header: Sequence[str], lines: Sequence[Sequence[str]], failures: Sequence[str], folder: Any
) -> None:
    """Configurations, the best first; then what failed, and where the files lie. A terminal too narrow for all columns
    gets fewer."""
    for count in range(len(LEAST_WANTED) + 1):
        hidden = {*ONLY_IN_FILES, *LEAST_WANTED[:count]}
        shown = [i for i, column in enumerate(header) if column not in hidden]
        table = make_table(f"leaderboard by {monitor}", *(header[i] for i in shown))
        for line in lines:
            table.add_row(*(line[i] for i in shown))
        if fits(table):
            break
    show_table(table)
    for failure in failures:
        show(failure)
    show(folder)


def show_report_path(path: Any) -> None:
    """Where the page is."""
    show(f"report: {path}")
