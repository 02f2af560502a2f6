"""The leaderboard and the path of the report, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_research.system.console import fits, make_table, show, show_table

ONLY_IN_FILES = ("parameters", "trainable", "features_computed")
LEAST_WANTED = ("seconds", "test_interval", "val_interval", "against_best")
"""Columns that a narrow terminal does without, in this order."""


def show_leaderboard(
    monitor: str, header: Sequence[str], lines: Sequence[Sequence[str]], failures: Sequence[str], folder: Any
) -> None:
    """Show configurations, the best first, then failures and the folder. A narrow terminal gets fewer columns."""
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
    """Show the path of the report."""
    show(f"report: {path}")
