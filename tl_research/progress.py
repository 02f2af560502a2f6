"""Progress on standard error: counts and time left, silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True)


def bar(*, transient: bool = True) -> Progress:
    """A progress bar with counts, elapsed and remaining time; draws nothing unless standard error is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal and not console.is_jupyter,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` unchanged while a bar counts them."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)
