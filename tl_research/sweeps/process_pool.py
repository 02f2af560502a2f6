"""Run each job in a process of its own, forked from a server that has imported TensorFlow.

TensorFlow frees no memory before its process ends, and seeds, names and sessions leak from one job to the next. A new
process avoids both, and forked from the server it starts in 0.1 s instead of 4. However a process ends, the next job
starts.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from tl_research.recipe import Positive, recipe
from tl_research.runs.run import Run
from tl_research.sweeps.job_process import Task, run_task
from tl_research.sweeps.machine_slots import Slot, visible_gpus
from tl_research.system.hardware import cores, memory_gb
from tl_research.system.process import importable

log = logging.getLogger(__name__)

GB_A_JOB = 4.0  # memory for fine-tuning a large network; a frozen one needs a quarter
GRACE = 10.0  # seconds in which an interrupted job may record its status
_OUT_OF_MEMORY = ("bad_alloc", "allocate", "MemoryError", "Resource temporarily unavailable")


@dataclass(frozen=True)
class Job:
    """A named job. `task` is called only when the job starts, so a thousand waiting jobs cost little memory."""

    name: str
    task: Callable[[], Task]


@dataclass
class Outcome:
    """The state of a job so far: one of the states of `status.json`, or `waiting`."""

    job: Job
    state: str = "waiting"
    reason: str | None = None
    value: float = math.nan
    began: float = 0.0
    seconds: float = 0.0
    doing: str = ""


class View(Protocol):
    """Display the progress of jobs."""

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def refresh(self) -> None:
        """Show the current states."""

    def ended(self, outcome: Outcome) -> None:
        """Show that a job has ended."""


@dataclass
class _Running:
    outcome: Outcome
    directory: Path
    process: Any
    receiver: Connection
    slot: Slot


@recipe
class Limits:
    """Limits of a sweep: `timeout` (seconds) and `memory_gb` (address space) are per job; after `max_failures` failed
    jobs none is started. `n_jobs=None` is one per GPU or, without GPUs, one per core as far as memory allows.
    """

    n_jobs: Positive | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_failures: Positive | None = None


@dataclass
class ProcessPool:
    """Run jobs within limits.

    Python's own pools do not survive a killed worker, and give a task no process, limits or cores of its own.
    """

    limits: Limits = field(default_factory=Limits)
    _running: list[_Running] = field(default_factory=list)
    _failures: int = 0

    @staticmethod
    def warm_up() -> None:
        """Start the fork server, which imports TensorFlow in the background."""
        multiprocessing.set_forkserver_preload(["tl_research.sweeps.preload"])
        # Before Python 3.13 the server does not get the import path, and would silently preload nothing.
        with importable():
            forkserver.ensure_running()

    def num_parallel(self, num_jobs: int) -> int:
        """Return the number of jobs to run in parallel. It depends on the machine and the number of jobs only: a job's
        threads are its share of the cores, and results are equal to the last bit for equal thread counts."""
        if self.limits.n_jobs is not None:
            return self.limits.n_jobs
        fitting = len(visible_gpus()) or min(cores(), int(memory_gb() / GB_A_JOB))
        return max(min(fitting, num_jobs), 1)

    def run(self, outcomes: Sequence[Outcome], view: View) -> None:
        """Run all jobs in order and update their outcomes.

        Raises:
            KeyboardInterrupt: the sweep was interrupted; running jobs are stopped and have the status `interrupted`.
        """
        self.warm_up()
        waiting, free = list(outcomes), Slot.of_machine(self.num_parallel(len(outcomes)))
        with view:
            try:
                while self._running or waiting:
                    if self.enough_failed:
                        waiting.clear()
                    while waiting and free:
                        self._start(waiting.pop(0), free.pop(0))
                    view.refresh()
                    for ended in self._listen():
                        free.append(ended.slot)
                        view.ended(ended.outcome)
            finally:
                self._stop()

    @property
    def enough_failed(self) -> bool:
        """Whether `max_failures` is reached, counted over all calls of `run`."""
        return self.limits.max_failures is not None and self._failures >= self.limits.max_failures

    def _start(self, outcome: Outcome, slot: Slot) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        task = outcome.job.task()
        process = context.Process(target=run_task, args=(task, slot, self.limits.memory_gb, sender))
        outcome.state, outcome.began = "running", time.monotonic()
        process.start()  # waits for the server
        outcome.began = time.monotonic()
        sender.close()
        self._running.append(_Running(outcome, task.directory, process, receiver, slot))

    def _listen(self, seconds: float = 0.25) -> list[_Running]:
        """Receive the jobs' messages for up to `seconds`, kill late jobs, and return those that have ended."""
        wait([r.process.sentinel for r in self._running] + [r.receiver for r in self._running], seconds)
        for running in self._running:
            _poll(running)
            late = self.limits.timeout is not None and time.monotonic() - running.outcome.began > self.limits.timeout
            if late and running.process.is_alive():
                running.process.kill()
                running.outcome.reason = f"timeout: it took longer than {self.limits.timeout:g} s"
        ended = [running for running in self._running if not running.process.is_alive()]
        for running in ended:
            _poll(running)
            self._running.remove(running)
            self._settle(running)
        return ended

    def _settle(self, running: _Running, interrupted: str | None = None) -> None:
        """Read the outcome of an ended job from its directory; record its death there if its process could not."""
        outcome, code, pid = running.outcome, running.process.exitcode, running.process.pid
        running.process.close()
        running.receiver.close()
        outcome.seconds, outcome.doing = time.monotonic() - outcome.began, ""
        status = Run(running.directory).status
        killed = outcome.reason or interrupted or (None if code == 0 else self._death(code, running.directory))
        is_own = status.get("pid") == pid
        recorded = is_own and status["state"] not in ("running", "interrupted")  # by the job itself, before it died
        if killed and not recorded:
            before = status["state"]
            status = {"state": "interrupted" if interrupted and not outcome.reason else "failed", "reason": killed}
            # Leave a run alone that another process is running, or that an earlier one has completed.
            if is_own or before not in ("running", "done"):
                Run.record_death(running.directory, status["state"], killed)
        if status["state"] == "running":  # another process: this one has ended normally
            status = {"state": "failed", "reason": "another process is at work in its directory"}
        outcome.state, outcome.reason = status["state"], status["reason"]
        self._failures += outcome.state in ("failed", "diverged")

    def _death(self, code: int, directory: Path) -> str:
        """Explain why a process ended that has recorded no reason."""
        tail = _tail(directory / "output.log")
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        limit = f"hydra.launcher.memory_gb={self.limits.memory_gb:g}" if self.limits.memory_gb is not None else None
        if limit and any(word in tail for word in _OUT_OF_MEMORY):
            return f"out of memory: more than {limit} ({name})"
        if limit and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
            return f"killed by {name}, perhaps out of memory: {limit}"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (by a person, or by the system, out of memory)"
        return f"killed by {name}" if code < 0 else f"its process ended with {name}; see output.log"

    def _stop(self) -> None:
        """Interrupt the running jobs, and kill those that do not end within `GRACE` seconds."""
        if not self._running:
            return
        with contextlib.suppress(KeyboardInterrupt):  # interrupted again: kill them at once
            for running in self._running:
                running.process.terminate()
            deadline = time.monotonic() + GRACE
            while any(r.process.is_alive() for r in self._running) and time.monotonic() < deadline:
                for running in self._running:
                    _poll(running)
                wait([r.process.sentinel for r in self._running if r.process.is_alive()], 0.1)
        for running in self._running:
            running.process.kill()
            running.process.join()
            self._settle(running, interrupted="the sweep was interrupted")
        self._running.clear()


def _poll(running: _Running) -> None:
    with contextlib.suppress(EOFError, OSError):
        while running.receiver.poll():
            kind, value = running.receiver.recv()
            if kind == "value":
                running.outcome.value = value
            elif kind == "begun":  # restart its clock: the first job has waited for the server
                running.outcome.began = time.monotonic()
            else:
                running.outcome.doing = value


def _tail(path: Path, size: int = 4096) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read().decode(errors="replace")
    return ""
