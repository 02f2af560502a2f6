"""`leaderboard`: the runs of a folder by their validation metric."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def leaderboard_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, such as that of a sweep")],
) -> None:
    """Rank all runs in a folder by their validation metric; write leaderboard.csv and leaderboard.md there.

    Example: python -m tl_research leaderboard outputs/sweeps
    """
    from tl_research.reports.leaderboard import Leaderboard, collect
    from tl_research.reports.summary import show_leaderboard

    folder = folder.expanduser()
    board = Leaderboard.of(collect(folder))
    board.write(folder)
    show_leaderboard(board.monitor, *board.table(), board.failures(), folder)
