"""Progress on standard error: counts and time left, silent where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from tl_research.system import console

T = TypeVar("T")

listeners: list[Callable[[str, float, float | None], None]] = []
"""Called with what is being done, how much of it is done, and out of how much: how a sweep hears of its jobs."""


class _Bar(Progress):
    """A progress bar that also tells the listeners."""

    @override
    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell(task_id)

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        for listener in listeners:
            listener(task.description, task.completed, task.total)


def bar(*, transient: bool = True) -> Progress:
    """A progress bar with counts, elapsed and remaining time; draws nothing unless standard error is a terminal."""
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console.progress_console,
        transient=transient,
        disable=not console.is_watched(),
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` unchanged while a bar counts them."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)
