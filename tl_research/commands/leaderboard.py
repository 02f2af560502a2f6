"""`leaderboard`: the runs of a folder by their validation metric."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def leaderboard_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, such as that of a sweep")],
) -> None:
    """Rank all runs in a folder by their validation metric, a table a data set; write leaderboard.csv and .md there.

    Example: python -m tl_research leaderboard outputs/sweeps
    """
    from tl_research.reports.leaderboard import Leaderboard, collect, write_leaderboards
    from tl_research.reports.summary import show_leaderboards

    folder = folder.expanduser()
    boards = Leaderboard.for_each_data_set(collect(folder))
    write_leaderboards(boards, folder)
    show_leaderboards(boards, folder)
