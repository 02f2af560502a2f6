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
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import Field, model_validator

from tl_research.errors import InputError
from tl_research.recipe import Positive, recipe
from tl_research.runs.run import Run
from tl_research.sweeps.job_process import Task, measure, run_task
from tl_research.sweeps.machine_slots import Slot, visible_gpus
from tl_research.system.hardware import cores, memory_gb
from tl_research.system.interruption import raise_if_interrupted
from tl_research.system.memory import says_out_of_memory
from tl_research.system.process import importable

log = logging.getLogger(__name__)

GB_A_JOB = 4.0  # memory for fine-tuning a large network; a frozen one needs a quarter
_MEMORY = "hydra.launcher.memory_gb"
GRACE = 10.0  # seconds in which an interrupted job may record its status


@dataclass(frozen=True)
class Job:
    """A named job. `task` is called only when the job starts, so a thousand waiting jobs cost little memory."""

    name: str
    task: Callable[[], Task]


@dataclass
class Outcome:
    """The state of a job so far: one of the states of `status.json`, `waiting`, or `kept`: done before."""

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
    silence: float = 0.0


@recipe
class Limits:
    """Limits of a sweep: `timeout`, `max_silence` (seconds) and `memory_gb` (address space) are per job; after
    `max_failures` failed jobs none is started. `n_jobs=None` is one per GPU or, without GPUs, one per core as far as
    memory allows. A job's process gives a sign of life each second, whatever its work; after `max_silence` seconds
    without one it is killed.
    """

    n_jobs: Positive | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_silence: Annotated[float, Field(gt=0)] | None = 1800
    max_failures: Positive | None = None

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        """Refuse a limit that no job could begin under, by starting a process that does nothing."""
        if self.memory_gb is None:
            return self
        ProcessPool.warm_up()
        process, receiver = _started(measure, self.memory_gb)
        process.join()
        size, can_limit = receiver.recv()
        if not can_limit:
            raise InputError(f"{_MEMORY}={self.memory_gb:g}: this system does not limit a process's memory; give null")
        if self.memory_gb < size:
            least = math.ceil(10 * size) / 10
            raise InputError(
                f"{_MEMORY}={self.memory_gb:g}: a job's process has {size:.2f} GB of address space before it "
                f"does anything, most of it TensorFlow's code; give at least {least:g}, or null"
            )
        return self


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
        resource_tracker.ensure_running()  # it, too, unblocks the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, until `preload` ignores it
        try:
            with importable():
                forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def num_parallel(self, num_jobs: int) -> int:
        """Return the number of jobs to run in parallel. It depends on the machine and the number of jobs only: a job's
        threads are its share of the cores, and results are equal to the last bit for equal thread counts."""
        if self.limits.n_jobs is not None:
            return self.limits.n_jobs
        fitting = len(visible_gpus()) or int(min(cores(), memory_gb() / GB_A_JOB))
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
                    raise_if_interrupted()
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
        task = outcome.job.task()
        outcome.state, outcome.began = "running", time.monotonic()
        process, receiver = _started(run_task, task, slot, self.limits.memory_gb)
        outcome.began = time.monotonic()
        self._running.append(_Running(outcome, task.directory, process, receiver, slot))

    def _listen(self, seconds: float = 0.25) -> list[_Running]:
        """Receive the jobs' messages for up to `seconds`, kill late jobs, and return those that have ended."""
        began = time.monotonic()
        wait([r.process.sentinel for r in self._running] + [r.receiver for r in self._running], seconds)
        for running in self._running:
            # Time in which this process was itself stopped does not count.
            running.silence = 0.0 if _poll(running) else running.silence + min(time.monotonic() - began, seconds)
            reason = self._excess(running)
            if reason and running.process.is_alive():
                running.process.kill()
                running.outcome.reason = reason
        ended = [running for running in self._running if not running.process.is_alive()]
        for running in ended:
            _poll(running)
            self._running.remove(running)
            self._settle(running)
        return ended

    def _excess(self, running: _Running) -> str | None:
        """Return which limit of time a job has exceeded, if any."""
        timeout, silence = self.limits.timeout, self.limits.max_silence
        if timeout is not None and time.monotonic() - running.outcome.began > timeout:
            return f"timeout: it took longer than {timeout:g} s"
        if silence is not None and running.silence > silence:
            return f"its process gave no sign of life for hydra.launcher.max_silence={silence:g} s"
        return None

    def _settle(self, running: _Running, interrupted: str | None = None) -> None:
        """Read the outcome of an ended job from its directory; record its death there if its process could not."""
        outcome, code, pid = running.outcome, running.process.exitcode, running.process.pid
        running.process.close()
        running.receiver.close()
        outcome.seconds, outcome.doing = time.monotonic() - outcome.began, ""
        status = Run(running.directory).status
        is_own = status.get("pid") == pid
        ended = code == 0 and (is_own or status["state"] in ("running", "done"))
        killed = outcome.reason or interrupted or (None if ended else self._death(code, running.directory))
        recorded = is_own and status["state"] not in ("running", "interrupted")  # by the job itself, before it died
        if killed and not recorded:
            before = status["state"]
            status = {"state": "interrupted" if interrupted and not outcome.reason else "failed", "reason": killed}
            # Leave a run alone that another process is running, or that an earlier one has completed.
            if is_own or before not in ("running", "done"):
                Run.record_death(running.directory, status["state"], killed)
        if status["state"] == "running":  # another process: this one has ended normally
            status = {"state": "failed", "reason": "another process is at work in its directory"}
        is_kept = status["state"] == "done" and not is_own  # by an earlier sweep: this process only found it done
        outcome.state, outcome.reason = "kept" if is_kept else status["state"], status["reason"]
        self._failures += outcome.state in ("failed", "diverged")

    def _death(self, code: int, directory: Path) -> str:
        """Explain why a process ended that has recorded no reason."""
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        limit = f"{_MEMORY}={self.limits.memory_gb:g}" if self.limits.memory_gb is not None else None
        tail = _tail(directory / "output.log")
        if says_out_of_memory(tail) or (limit and "Resource temporarily unavailable" in tail):
            return f"out of memory{f': more than {limit}' if limit else ''} ({name})"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (by a person, or by the system, out of memory)"
        ended = f"killed by {name}" if code < 0 else f"its process ended with {name}"
        # A library in want of memory may end the process without a word.
        return (
            f"{ended}, perhaps out of memory: {limit}" if limit else ended if code < 0 else f"{ended}; see output.log"
        )

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


def _started(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Start a process from the server, which this waits for; return it and the end of a pipe to it."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    return process, receiver


def _poll(running: _Running) -> bool:
    """Take in a job's messages; returns whether there were any."""
    any_came = False
    with contextlib.suppress(EOFError, OSError):
        while running.receiver.poll():
            kind, value = running.receiver.recv()
            any_came = True
            if kind == "value":
                running.outcome.value = value
            elif kind == "begun":  # restart its clock: the first job has waited for the server
                running.outcome.began = time.monotonic()
            elif kind == "doing":
                running.outcome.doing = value
    return any_came


def _tail(path: Path, size: int = 4096) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read().decode(errors="replace")
    return ""
