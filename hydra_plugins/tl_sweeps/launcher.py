"""hydra/launcher=processes: each job of a sweep in a fresh process. See `tl_research.sweeps.process_pool`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from tl_research.sweeps.job_process import Task
from tl_research.sweeps.live_table import LiveTable
from tl_research.sweeps.process_pool import Job, Limits, Outcome, ProcessPool

log = logging.getLogger(__name__)


class ProcessLauncher(Launcher):
    """Run each job in a process of its own, `n_jobs` at a time. The arguments are the fields of `Limits`."""

    recipe = Limits

    def __init__(self, **limits: Any) -> None:
        self.pool = ProcessPool(Limits(**limits))
        self.config: DictConfig | None = None
        self.task: TaskFunction | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments, and start the job server while the sweeper still checks configurations."""
        self.config, self.task, self.context = config, task_function, hydra_context
        self.pool.warm_up()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. A failed job returns NaN, and its status.json has the reason."""
        setup_globals()
        assert self.config is not None
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        limits = self.pool.limits
        outcomes = [
            Outcome(Job(name, partial(self._task, number, list(overrides))))
            for number, (name, overrides) in enumerate(
                zip(_names(job_overrides), job_overrides, strict=True), initial_job_idx
            )
        ]
        trials = OmegaConf.select(self.config, "hydra.sweeper.n_trials")
        view = LiveTable(
            outcomes,
            self.pool.num_parallel(len(outcomes)),
            before=initial_job_idx if trials else 0,
            total=int(trials or 0),
            unit=" features computed" if getattr(self.task, "__name__", "") == "extract" else "",
        )
        self.pool.run(outcomes, view)
        left = sum(outcome.state == "waiting" for outcome in outcomes)
        if left:
            log.error("%d job(s) not started: hydra.launcher.max_failures=%s", left, limits.max_failures)
        return [_returned(outcome.value, overrides) for outcome, overrides in zip(outcomes, job_overrides, strict=True)]

    def _task(self, number: int, overrides: list[str]) -> Task:
        from tl_research.config.jobs import (
            run,
        )  # a function of this file could not be pickled: Hydra loads it without a module name

        assert self.context is not None
        assert self.config is not None
        assert self.task is not None
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        directory = Path(str(config.hydra.sweep.dir), str(OmegaConf.select(config, "hydra.sweep.subdir"))).absolute()
        return Task(directory, partial(run, self.context, self.task, config))


def _names(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Name each job by its overrides that not all jobs share, or by all for a single job; never by Hydra's own."""
    shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
    return [
        " ".join(o for o in overrides if o not in shared and not o.lstrip("+~").startswith("hydra."))
        for overrides in job_overrides
    ]


def _returned(value: float, overrides: Sequence[str]) -> JobReturn:
    returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    returned.return_value = value
    return returned
