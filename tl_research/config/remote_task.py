"""What the launchers of others lack when they start our jobs elsewhere. Each waits for its jobs in turn, and raises for
the first whose process has died. That ends a sweep of a hundred jobs, and with Ray the jobs, too."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import TaskFunction
from omegaconf import DictConfig

from tl_research.runs.run import Run
from tl_research.system.hardware import CORES_VARIABLE
from tl_research.system.process import print_to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteTask:
    """`task`, as a job does it in a process that is not ours: relative paths mean what they mean in the sweep's, it
    takes the threads that it was given cores for, and what it prints goes to its `output.log`. With `heeds_sigterm`
    that signal is an interruption: Ray makes a SystemExit of it, which looks like a failure of the job's own."""

    task: TaskFunction
    cwd: str
    threads: int | None
    heeds_sigterm: bool = False

    def __call__(self, cfg: DictConfig) -> float:
        """Runs in the job's process. `threads=...` on the command line wins."""
        os.chdir(self.cwd)
        print_to(Path(HydraConfig.get().runtime.output_dir, "output.log"))
        if self.threads is not None:
            os.environ[CORES_VARIABLE] = str(self.threads)
        if not self.heeds_sigterm:
            return float(self.task(cfg))
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return float(self.task(cfg))
        finally:
            signal.signal(signal.SIGTERM, before)


def announce(where: str, job_overrides: Sequence[Sequence[str]], first: int) -> None:
    """Says what is to run: a cluster may take its time."""
    for number, overrides in enumerate(job_overrides, first):
        log.info("%s #%d: %s", where, number, " ".join(filter_overrides(overrides)))


def last_status_time(directory: Path) -> int:
    """When the run in a directory last said where it stands, by the clock of the file system; 0: never."""
    with contextlib.suppress(OSError):
        return (directory / "status.json").stat().st_mtime_ns
    return 0


def wait_for(wait: Callable[[], JobReturn], overrides: Sequence[str], directory: Path, before: int) -> JobReturn:
    """What a job returns, once it has. A NaN if it cannot, for its process has died; then its status says so.

    Args:
        wait: gives what it returns, or raises.
        overrides: of the job.
        directory: of its run.
        before: the `last_status_time` from there before the job was started.
    """
    try:
        returned = wait()
        returned.return_value  # noqa: B018 - raises what the job has raised
    except Exception as error:
        reason = f"its process died: {next(iter(str(error).strip().splitlines()), repr(error))}"
        log.error("%s: %s", directory.name, reason)
        state = Run(directory).status["state"]
        told = state != "interrupted" and last_status_time(directory) != before  # it could say itself how it ended
        # Not where another process is at work, and what is done stays done, though its being so was not looked at.
        if not told and state not in ("running", "done"):
            Run.record_death(directory, "failed", reason)
        returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
        returned.return_value = math.nan
    return returned
