"""`report`: one page about the runs of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.system.console import show


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, or the directory of one run")],
    maps: Annotated[bool, typer.Option(help="Show which parts of the worst mistakes speak for the answer")] = True,
) -> None:
    """Write report.html, one page that opens offline: leaderboard, curves, costs, effects of keys, worst mistakes.

    Example: python -m tl_research report outputs/sweeps
    """
    from tl_research.reports.html_report import write_report

    show(write_report(folder.expanduser(), maps=maps))
