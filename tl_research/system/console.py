"""The only place that prints: results on standard output; progress, messages and errors on standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typing_extensions import override

MOST_COLUMNS = 1000
LEAST_WIDTH = 16  # of a column, before it wraps: that of an interval

if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: a file's name may be no text

log = logging.getLogger(__name__)


class _Terminal(Console):
    """A console whose reader may leave, as `head` does: the run goes on."""

    @override
    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


out = _Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False)
if not (out.is_terminal or out.is_jupyter):
    out.width = 160  # a file has room for whole names
progress_console = _Terminal(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Where progress bars are drawn."""


def is_watched() -> bool:
    """Tell whether progress can be seen: on a terminal or in a notebook."""
    return not progress_console.quiet and (progress_console.is_terminal or progress_console.is_jupyter)


@contextlib.contextmanager
def silenced(silent: bool = True, *, bars: bool = True) -> Iterator[None]:
    """If `silent`, print nothing but warnings and errors within the block, and progress bars where `bars` is false."""
    if not silent:
        yield
        return
    consoles, level = [out, progress_console][: 1 + bars], logging.root.manager.disable
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


@contextlib.contextmanager
def only_warning(what: str) -> Iterator[None]:
    """Turn an error within the block into a warning of one line: what only shows must not fail a run."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s: not shown, the run goes on (%.300s)", what, reason)


def printable(text: str) -> str:
    """Escape control characters and bytes that are no text, as names of files may have them."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in text
    )


def show(*lines: Any) -> None:
    """Print lines on standard output."""
    for line in lines:
        out.print(str(line))


def show_progress(line: str) -> None:
    """Write a line to the log files, and to standard output where nobody sees a progress bar."""
    record = logging.makeLogRecord({"name": "tl_research", "levelno": logging.INFO, "levelname": "INFO", "msg": line})
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    if not (is_watched() or out.is_terminal):
        show(line)


def show_error(message: Any) -> None:
    """Print a line on standard error, even where all else is silenced."""
    sys.stderr.write(f"{message}\n")


def make_table(title: str, *columns: str) -> Table:
    """Make an empty table; the first column is aligned to the left, the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def show_table(table: Table) -> None:
    """Print a table on standard output, in a file as wide as it is. Where a terminal is too narrow, long cells wrap,
    and columns that still do not fit follow in tables below, each of which begins with the first column."""
    if not out.is_terminal:
        out.width = max(out.width, _width(table))
    rest = list(range(1, len(table.columns)))
    if _width(table) <= out.width:
        out.print(table)
        return
    while rest:
        fitting = next((n for n in range(len(rest), 1, -1) if _width(_part(table, rest[:n])) <= out.width), 1)
        out.print(_part(table, rest[:fitting]))
        rest = rest[fitting:]


def _part(table: Table, columns: Sequence[int]) -> Table:
    """Copy the first column of a table and some others, of which none takes more than a third of the width."""
    chosen = [table.columns[n] for n in (0, *columns)]
    part = make_table(str(table.title or ""), *(str(column.header) for column in chosen))
    part.title = table.title if columns[0] == 1 else None
    for column in part.columns:
        column.max_width = max(out.width // 3, LEAST_WIDTH)
    for row, *cells in zip(table.rows, *(column.cells for column in chosen), strict=True):
        part.add_row(*cells, style=row.style)
    return part


def _width(table: Table) -> int:
    return Measurement.get(out, out.options.update(max_width=MOST_COLUMNS), table).maximum
