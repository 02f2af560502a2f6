"""`compare`: which of several runs is better, and how sure that is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tl_research.errors import InputError
from tl_research.system.console import make_table, show, show_table


def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more run directories")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the page; default: outputs/compare/TIME")
    ] = None,
    thumbnails: Annotated[bool, typer.Option(help="Show the images on which runs differ")] = True,
) -> None:
    """Compare runs on the same test images: these models, their settings, and the images on which they differ.

    Example: python -m tl_research compare outputs/first outputs/second
    """
    from tl_research.reports.compare import compare_runs, write_comparison

    if len(runs) < 2:
        raise InputError("compare: give at least two runs")
    pairs = compare_runs([run.expanduser() for run in runs])
    table = make_table("test accuracy", "run", "accuracy")
    for answers in {id(answers): answers for pair in pairs for answers in (pair.first, pair.second)}.values():
        table.add_row(answers.name, f"{answers.accuracy:.3f}")
    show_table(table)
    for pair in pairs:
        show(*pair.sentences(), "")
    folder = output or Path("outputs", "compare", time.strftime("%Y-%m-%dT%H-%M-%S"))
    show(write_comparison(pairs, folder.expanduser(), pictures=thumbnails))
