"""Show a running sweep as a table: running jobs and their progress, counts of the others, and the time left. Without a
terminal, print a line for each job that ends."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tl_research.sweeps.process_pool import Outcome
from tl_research.system import console

MOST_ROWS = 12
STYLES = {"done": "green", "kept": "green", "failed": "bold red", "running": "bold", "waiting": "dim"}


class LiveTable:
    """Display outcomes while a pool updates them."""

    def __init__(self, outcomes: Sequence[Outcome], n_jobs: int, *, before: int = 0, total: int = 0, unit: str = ""):
        """Of a search these are some trials of `total`, after those `before`; `unit` is that of the jobs' values."""
        self.outcomes = outcomes
        self.n_jobs = n_jobs
        self._before, self._total, self._unit = before, max(total, before + len(outcomes)), unit
        self.began = time.monotonic()
        self._live = Live(
            get_renderable=self._draw, console=console.progress_console, transient=True, refresh_per_second=4
        )
        self._seen = console.is_watched()

    def __enter__(self) -> LiveTable:
        if self._seen:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._seen:
            self._live.stop()

    def refresh(self) -> None:
        """Do nothing: the table is drawn four times a second."""

    def ended(self, outcome: Outcome) -> None:
        """Print a line that stays above the table."""
        count = self._before + sum(o.state not in ("waiting", "running") for o in self.outcomes)
        value = "" if math.isnan(outcome.value) else f"  {outcome.value:.4g}{self._unit}"
        reason = f"  {' '.join(outcome.reason.split())}" if outcome.reason else ""
        if outcome.state == "skipped":  # preflight has printed it in full
            reason = reason.partition(":")[0]
        seconds = "" if outcome.state == "kept" else f"  {outcome.seconds:.1f} s"
        line = f"[{count}/{self._total}] {outcome.state:11} {outcome.job.name}{value}{seconds}"
        console.progress_console.print(Text(line + reason, style=STYLES.get(outcome.state, "")))

    def _draw(self) -> Any:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("running", "seconds", "doing"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        running = [outcome for outcome in self.outcomes if outcome.state == "running"]
        for outcome in running[:MOST_ROWS]:
            seconds = f"{time.monotonic() - outcome.began:.0f}"
            table.add_row(Text(outcome.job.name), seconds, Text(outcome.doing))
        return Group(table, Text(self.summary(), style="bold"))

    def summary(self) -> str:
        """Return a line such as `7 done, 1 failed, 2 running, 2 waiting; 41 s so far, 20 s left`."""
        states = [outcome.state for outcome in self.outcomes]
        order = ("done", "kept", "failed", "diverged", "skipped", "pruned", "interrupted", "running", "waiting")
        counts = ", ".join(f"{states.count(state)} {state}" for state in order if state in states)
        left = self.seconds_left()
        about = "" if left is None else f", about {left:.0f} s left"
        return f"{counts}; {time.monotonic() - self.began:.0f} s so far{about}"

    def seconds_left(self) -> float | None:
        """Estimate the time left from the mean of the jobs that have ended, other than those done before; None before
        the first."""
        ended = [outcome.seconds for outcome in self.outcomes if outcome.state not in ("waiting", "running", "kept")]
        if not ended:
            return None
        mean = sum(ended) / len(ended)
        spent = sum(min(time.monotonic() - o.began, mean) for o in self.outcomes if o.state == "running")
        unfinished = sum(outcome.state in ("waiting", "running") for outcome in self.outcomes)
        return max(unfinished * mean - spent, 0.0) / min(self.n_jobs, max(unfinished, 1))
