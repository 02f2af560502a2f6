"""Progress bars on standard error, a line of text in a notebook; nothing is drawn unless somebody can see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from tl_research.system import console
from tl_research.system.interruption import raise_if_interrupted

T = TypeVar("T")

listeners: list[Callable[[str, float, float | None], None]] = []
"""Called with each bar's description, completed count and total: a sweep follows its jobs by them."""


SECONDS_A_LINE = 1
"""How often a notebook's line is rewritten; what takes less shows none."""


class _Bar(Progress):
    """A progress bar that also calls the listeners. In a notebook, where rich asks for ipywidgets and leaves empty
    outputs behind, it is a line of text."""

    def __init__(self, *columns: ProgressColumn, **options: Any):
        super().__init__(*columns, **options)
        self._line: Any = None
        self._line_due = time.monotonic() + SECONDS_A_LINE

    @override
    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._notify(task_id)

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._notify(task_id)

    def _notify(self, task_id: TaskID) -> None:
        raise_if_interrupted()
        task = self._tasks[task_id]
        for listener in listeners:
            listener(task.description, task.completed, task.total)
        if console.is_watched() and console.progress_console.is_jupyter:
            self._write_line(task)

    def _write_line(self, task: Task) -> None:
        if time.monotonic() < self._line_due and not (task.finished and self._line):
            return
        self._line_due = time.monotonic() + SECONDS_A_LINE
        count = f"{task.percentage:.0f} %" if task.total else f"{task.completed:g}"
        data = {"text/plain": f"{task.description}: {count} in {task.elapsed or 0:.0f} s"}
        if self._line:
            self._line.update(data, raw=True)
        else:
            from IPython.display import display

            self._line = display(data, raw=True, display_id=True)


def bar(*columns: ProgressColumn) -> Progress:
    """Make a progress bar with these columns, or with counts and elapsed time, and the remaining time."""
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        console=console.progress_console,
        transient=True,
        disable=console.progress_console.is_jupyter or not console.is_watched(),
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` unchanged while a bar counts them."""
    with bar() as progress:
        task = progress.add_task(description, total=total or length_hint(items) or None)
        for item in items:
            yield item
            progress.advance(task)
