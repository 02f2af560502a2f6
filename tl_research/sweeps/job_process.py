"""The process of one job, from its start to its exit."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tl_research.sweeps.machine_slots import Slot
from tl_research.system import progress
from tl_research.system.interruption import interrupt
from tl_research.system.memory import address_space_gb, limit_address_space
from tl_research.system.process import exit_now, print_to

log = logging.getLogger(__name__)

TELL_EVERY = 0.2  # seconds between two messages about progress
BEAT_EVERY = 1.0  # seconds between two signs of life


@dataclass(frozen=True)
class Task:
    """The work of one job, called in its process: it can be pickled and returns the job's value. `directory` is its
    run's; the pool corrects the status there if the process dies."""

    directory: Path
    work: Callable[[], float]


def run_task(task: Task, slot: Slot, memory_gb: float | None, sender: Connection) -> None:
    """Run a task in this process and end the process. Messages `(kind, value)` go to `sender`."""
    try:
        sender.send(("begun", None))
    except OSError:  # the sweep was interrupted before this process began
        exit_now(1)
    _live_with_parent(sender)
    signal.signal(signal.SIGTERM, interrupt)
    task.directory.mkdir(parents=True, exist_ok=True)
    print_to(task.directory / "output.log")  # the terminal shows all jobs at once
    progress.listeners.append(_report_progress(sender))
    status = 1
    try:
        slot.enter()
        if memory_gb is not None:
            limit_address_space(memory_gb)
        sender.send(("value", task.work()))
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        log.exception("%s", task.directory)
    exit_now(status)


def measure(memory_gb: float, sender: Connection) -> None:
    """Send how much address space a job's process has before its job begins, and whether the system can limit it."""
    size = address_space_gb()
    with contextlib.suppress(ValueError, OSError):
        limit_address_space(max(memory_gb, size + 1))  # room for what follows
        sender.send((size, True))
        return
    sender.send((size, False))


def _live_with_parent(sender: Connection) -> None:
    """Give signs of life, however silent the work is, and end with the sweep's process, even a killed one: a repeated
    command would find its old jobs still running."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while parent.is_alive():
            with contextlib.suppress(OSError, MemoryError):
                sender.send(("alive", None))
            parent.join(BEAT_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _report_progress(sender: Connection) -> Callable[[str, float, float | None], None]:
    last = 0.0

    def report(doing: str, done: float, total: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > TELL_EVERY:
            last = now
            with contextlib.suppress(OSError):
                sender.send(("doing", f"{doing} {done:.0f}/{total:.0f}" if total else doing))

    return report
