"""Pool: jobs, each in a process of its own, forked from a server that has TensorFlow imported.

TensorFlow gives no memory back before its process ends, and seeds, names and sessions leak from one job to the next. A
fresh process has none of that, and from the server it starts in a tenth of a second instead of four. Whatever ends a
process, the next job starts.
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

GB_A_JOB = 4.0  # what fine-tuning a large network takes; a frozen one takes a quarter
GRACE = 10.0  # seconds that an interrupted job has to say so
_OUT_OF_MEMORY = ("bad_alloc", "allocate", "MemoryError", "Resource temporarily unavailable")


@dataclass(frozen=True)
class Job:
    """`task` is asked for only when the job's turn comes, so that a thousand jobs are a thousand names."""

    name: str
    task: Callable[[], Task]


@dataclass
class Outcome:
    """What became of a job: a state of `status.json`, or `waiting`."""

    job: Job
    state: str = "waiting"
    reason: str | None = None
    value: float = math.nan
    began: float = 0.0
    seconds: float = 0.0
    doing: str = ""


class View(Protocol):
    """Shows how far the jobs are."""

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def refresh(self) -> None:
        """Something has changed."""

    def ended(self, outcome: Outcome) -> None:
        """This one has ended."""


@dataclass
class _Running:
    outcome: Outcome
    directory: Path
    process: Any
    receiver: Connection
    slot: Slot


@recipe
class Limits:
    """`timeout` in seconds and `memory_gb` of address space hold for each job; after `max_failures` none is started.

    `n_jobs` null is one for each GPU or, without any, one for each core as far as memory goes.
    """

    n_jobs: Positive | None = 1
    timeout: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_failures: Positive | None = None


@dataclass
class ProcessPool:
    """Runs jobs within limits.

    Python's pools neither outlive a worker that is killed nor give each task a process, a limit and its cores, hence
    our own.
    """

    limits: Limits = field(default_factory=Limits)
    _running: list[_Running] = field(default_factory=list)
    _failures: int = 0

    @staticmethod
    def warm_up() -> None:
        """Starts the server, which imports TensorFlow while there is other work to do."""
        multiprocessing.set_forkserver_preload(["tl_research.sweeps.preload"])
        # Python before 3.13 does not hand its import path to the server, which would then import nothing, in silence.
        with importable():
            forkserver.ensure_running()

    def places(self, num_jobs: int) -> int:
        """How many jobs to run at a time. Nothing but the machine and the number of jobs decides, for a job's threads
        are its part of the cores, and equal threads are equal bits."""
        if self.limits.n_jobs is not None:
            return self.limits.n_jobs
        fitting = len(visible_gpus()) or min(cores(), int(memory_gb() / GB_A_JOB))
        return max(min(fitting, num_jobs), 1)

    def run(self, outcomes: Sequence[Outcome], view: View) -> None:
        """Runs all jobs, in order, and fills in what became of them.

        Raises:
            KeyboardInterrupt: the jobs that were running have been stopped, and their status says so.
        """
        self.warm_up()
        waiting, free = list(outcomes), Slot.of_machine(self.places(len(outcomes)))
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
        """Whether no further job is to be started: failures count over all calls of `run`."""
        return self.limits.max_failures is not None and self._failures >= self.limits.max_failures

    def _start(self, outcome: Outcome, slot: Slot) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        task = outcome.job.task()
        process = context.Process(target=run_task, args=(task, slot, self.limits.memory_gb, sender))
        outcome.state, outcome.began = "running", time.monotonic()
        process.start()  # which waits for the server
        outcome.began = time.monotonic()
        sender.close()
        self._running.append(_Running(outcome, task.directory, process, receiver, slot))

    def _listen(self, seconds: float = 0.25) -> list[_Running]:
        """Hears what the jobs say for a moment, and returns those that have ended."""
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
        """Takes down what the job has left in its directory, and mends what it could not finish."""
        outcome, code, pid = running.outcome, running.process.exitcode, running.process.pid
        running.process.close()
        running.receiver.close()
        outcome.seconds, outcome.doing = time.monotonic() - outcome.began, ""
        status = Run(running.directory).status
        killed = outcome.reason or interrupted or (None if code == 0 else self._death(code, running.directory))
        mine = status.get("pid") == pid
        told = mine and status["state"] not in ("running", "interrupted")  # it could say itself how it ended
        if killed and not told:
            before = status["state"]
            status = {"state": "interrupted" if interrupted and not outcome.reason else "failed", "reason": killed}
            # Not where another process is at work, and what is done stays done, though its being so was not looked at.
            if mine or before not in ("running", "done"):
                Run.record_death(running.directory, status["state"], killed)
        if status["state"] == "running":  # and not by this process, which has ended well
            status = {"state": "failed", "reason": "another process is at work in its directory"}
        outcome.state, outcome.reason = status["state"], status["reason"]
        self._failures += outcome.state in ("failed", "diverged")

    def _death(self, code: int, directory: Path) -> str:
        """Why a process ended that could not say so."""
        last = _last_words(directory / "output.log")
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        limit = f"hydra.launcher.memory_gb={self.limits.memory_gb:g}" if self.limits.memory_gb is not None else None
        if limit and any(word in last for word in _OUT_OF_MEMORY):
            return f"out of memory: more than {limit} ({name})"
        if limit and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
            return f"killed by {name}, perhaps out of memory: {limit}"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (by a person, or by the system, out of memory)"
        return f"killed by {name}" if code < 0 else f"its process ended with {name}; see output.log"

    def _stop(self) -> None:
        """Interrupts what is running; kills what does not listen."""
        if not self._running:
            return
        with contextlib.suppress(KeyboardInterrupt):  # a second one: at once
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
            kind, what = running.receiver.recv()
            if kind == "value":
                running.outcome.value = what
            elif kind == "begun":  # the first one has waited for the server, which is none of its time
                running.outcome.began = time.monotonic()
            else:
                running.outcome.doing = what


def _last_words(path: Path, size: int = 4096) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read().decode(errors="replace")
    return ""
