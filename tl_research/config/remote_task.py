"""Run jobs through Ray's and submitit's launchers so that a sweep survives the death of a job's process. The launchers
themselves wait for jobs in order and raise at the first one that died, which would end the whole sweep."""

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
from tl_research.system.interruption import interrupt
from tl_research.system.process import print_to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteTask:
    """Run `task` in a launcher's process: in the sweep's working directory, with as many threads as it has cores,
    printing to its `output.log`. With `heeds_sigterm` SIGTERM interrupts it: Ray would raise SystemExit, which looks
    like a failure of the job."""

    task: TaskFunction
    cwd: str
    threads: int | None
    heeds_sigterm: bool = False

    def __call__(self, cfg: DictConfig) -> float:
        """Run the task in the job's process. `threads=...` on the command line wins over the number of cores."""
        os.chdir(self.cwd)
        print_to(Path(HydraConfig.get().runtime.output_dir, "output.log"))
        if self.threads is not None:
            os.environ[CORES_VARIABLE] = str(self.threads)
        if not self.heeds_sigterm:
            return float(self.task(cfg))
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            return float(self.task(cfg))
        finally:
            signal.signal(signal.SIGTERM, before)


def announce(where: str, job_overrides: Sequence[Sequence[str]], first: int) -> None:
    """Log the jobs that are submitted: a cluster may start them much later."""
    for number, overrides in enumerate(job_overrides, first):
        log.info("%s #%d: %s", where, number, " ".join(filter_overrides(overrides)))


def last_status_time(directory: Path) -> int:
    """Return the modification time of a run's status.json in nanoseconds; 0 if there is none."""
    with contextlib.suppress(OSError):
        return (directory / "status.json").stat().st_mtime_ns
    return 0


def wait_for(wait: Callable[[], JobReturn], overrides: Sequence[str], directory: Path, before: int) -> JobReturn:
    """Wait for a job's result. If its process died, the value is NaN, and its status.json records the death.

    Args:
        wait: returns the result or raises.
        overrides: the job's.
        directory: the job's run directory.
        before: `last_status_time(directory)` before the job was started.
    """
    try:
        returned = wait()
        returned.return_value  # noqa: B018 - raises the job's exception
    except Exception as error:
        reason = f"its process died: {next(iter(str(error).strip().splitlines()), repr(error))}"
        log.error("%s: %s", directory.name, reason)
        state = Run(directory).status["state"]
        recorded = state != "interrupted" and last_status_time(directory) != before  # by the job, before it died
        # Leave a run alone that another process is running, or that an earlier one has completed.
        if not recorded and state not in ("running", "done"):
            Run.record_death(directory, "failed", reason)
        returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
        returned.return_value = math.nan
    return returned
