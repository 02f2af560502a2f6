"""The only place that prints: results on standard output; progress, messages and errors on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

MOST_COLUMNS = 1000

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
if not (out.is_terminal or out.is_jupyter):
    out.width = 160  # a file has room for whole names
progress_console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Where progress bars are drawn."""


def is_watched() -> bool:
    """Tell whether progress can be seen: on a terminal or in a notebook."""
    return not progress_console.quiet and (progress_console.is_terminal or progress_console.is_jupyter)


@contextlib.contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """If `silent`, print nothing but warnings and errors within the block."""
    if not silent:
        yield
        return
    consoles, level = (out, progress_console), logging.root.manager.disable
    before = [console.quiet for console in consoles]
    logging.disable(max(level, logging.INFO))
    for console in consoles:
        console.quiet = True
    try:
        yield
    finally:
        logging.disable(level)
        for console, quiet in zip(consoles, before, strict=True):
            console.quiet = quiet


def show(*lines: Any) -> None:
    """Print lines on standard output."""
    for line in lines:
        out.print(str(line))


def show_error(message: Any) -> None:
    """Print a line on standard error, even where all else is silenced."""
    sys.stderr.write(f"{message}\n")


def make_table(title: str, *columns: str) -> Table:
    """Make an empty table; the first column is aligned to the left, the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def show_table(table: Table) -> None:
    """Print a table on standard output."""
    out.print(table)


def fits(table: Table) -> bool:
    """Tell whether a table can be shown in full; a file is as wide as the table."""
    width = Measurement.get(out, out.options.update(max_width=MOST_COLUMNS), table).maximum
    if not out.is_terminal:
        out.width = max(out.width, width)
    return width <= out.width
