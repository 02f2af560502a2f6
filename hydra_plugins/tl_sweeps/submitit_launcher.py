"""hydra/launcher=submitit_slurm and submitit_local: hydra-submitit-launcher, made to survive its jobs' failures. See
`config.remote_task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from tl_research.config.remote_task import RemoteTask, announce, last_status_time, wait_for
from tl_research.sweeps.cluster_options import Local, Slurm
from tl_research.system.process import importable

try:
    from hydra_plugins.hydra_submitit_launcher import config as schema
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as plugin
except ImportError:  # an optional extra; preflight says how to install it
    plugin = None


if plugin is not None:

    class SubmititLauncher(plugin.BaseSubmititLauncher):
        """Run jobs through submitit. A job that dies or is killed fails alone, not the sweep."""

        def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
            """Wrap the task, so that it runs on a node as it would here."""
            task = RemoteTask(task_function, str(Path.cwd()), self.params.get("cpus_per_task"))
            super().setup(hydra_context=hydra_context, task_function=task, config=config)

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Run the jobs. A failed job returns NaN, and its status.json has the reason.

            Raises:
                KeyboardInterrupt: the sweep was interrupted; its jobs are cancelled.
            """
            assert self.config is not None
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            folder = Path(str(self.config.hydra.sweep.dir)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            count, state = len(job_overrides), Singleton.get_state()
            numbers = range(initial_job_idx, initial_job_idx + count)
            calls = ([list(o) for o in job_overrides], ["hydra.sweep.dir"] * count, numbers, numbers, [state] * count)
            directories = [folder / self._subdir(overrides) for overrides in job_overrides]
            before = [last_status_time(directory) for directory in directories]
            announce(self._EXECUTOR, job_overrides, initial_job_idx)
            with importable():
                jobs = self.executor().map_array(self, *calls)
            try:
                return [
                    wait_for(partial(_first, job.results), overrides, directory, time)
                    for job, overrides, directory, time in zip(jobs, job_overrides, directories, before, strict=True)
                ]
            except KeyboardInterrupt:
                for job in jobs:
                    job.cancel(check=False)
                raise

        def executor(self) -> Any:
            """Make submitit's executor from the launcher's keys."""
            import submitit

            own = dict(self.params)
            start = {"folder": own.pop("submitit_folder")}
            if "max_num_timeout" in own:
                start[f"{self._EXECUTOR}_max_num_timeout"] = own.pop("max_num_timeout")
            shared = {field.name for field in dataclasses.fields(schema.BaseQueueConf)}
            executor = submitit.AutoExecutor(cluster=self._EXECUTOR, **start)
            executor.update_parameters(**{k if k in shared else f"{self._EXECUTOR}_{k}": v for k, v in own.items()})
            return executor

        def _subdir(self, overrides: Sequence[str]) -> str:
            assert self.config is not None
            assert self.hydra_context is not None
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            return str(OmegaConf.select(config, "hydra.sweep.subdir"))

    class LocalLauncher(SubmititLauncher):
        """Run each job as a process on this machine, all at once."""

        _EXECUTOR = "local"
        recipe = Local

    class SlurmLauncher(SubmititLauncher):
        """Run each job as a task of a Slurm job array."""

        _EXECUTOR = "slurm"
        recipe = Slurm


def _first(results: Callable[[], list[JobReturn]]) -> JobReturn:
    return results()[0]
