"""Progress bars on standard error; nothing is drawn unless somebody can see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from tl_research.system import console

T = TypeVar("T")

listeners: list[Callable[[str, float, float | None], None]] = []
"""Called with each bar's description, completed count and total: a sweep follows its jobs by them."""


class _Bar(Progress):
    """A progress bar that also calls the listeners."""

    @override
    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._notify(task_id)

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._notify(task_id)

    def _notify(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        for listener in listeners:
            listener(task.description, task.completed, task.total)


def bar(*columns: ProgressColumn) -> Progress:
    """Make a progress bar with these columns, or with counts and elapsed time, and the remaining time."""
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        console=console.progress_console,
        transient=True,
        disable=not console.is_watched(),
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` unchanged while a bar counts them."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)
