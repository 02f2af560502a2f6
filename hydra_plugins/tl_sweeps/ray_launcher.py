"""hydra/launcher=ray: hydra-ray-launcher, made to survive its jobs' failures. See `config.remote_task`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from tl_research.config.remote_task import RemoteTask, announce, last_status_time, wait_for
from tl_research.errors import InputError
from tl_research.sweeps.cluster_options import OnRay
from tl_research.system.process import importable

try:
    from hydra_plugins.hydra_ray_launcher import ray_launcher as plugin
except ImportError:  # an optional extra; preflight says how to install it
    plugin = None  # type: ignore[assignment]


if plugin is not None:

    class RayLauncher(plugin.RayLauncher):
        """Run each job as a Ray task. A worker that dies fails its job, not the sweep."""

        recipe = OnRay

        def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
            """Wrap the task, so that it runs in a worker as it would here."""
            cores = self.ray_cfg.remote.get("num_cpus")
            threads = max(1, int(cores)) if cores is not None else None
            task = RemoteTask(task_function, str(Path.cwd()), threads, heeds_sigterm=True)
            super().setup(hydra_context=hydra_context, task_function=task, config=config)

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Run the jobs. A failed job returns NaN, and its status.json has the reason."""
            from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

            assert self.config is not None
            assert self.hydra_context is not None
            assert self.task_function is not None
            setup_globals()
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            with importable():
                ray = self._start()
            announce("ray", job_overrides, initial_job_idx)
            configs = [self._config(number, list(o)) for number, o in enumerate(job_overrides, initial_job_idx)]
            directories = [Path(config.hydra.sweep.dir, config.hydra.sweep.subdir) for config in configs]
            before = [last_status_time(directory) for directory in directories]
            state = Singleton.get_state()
            runs = [
                launch_job_on_ray(self.hydra_context, self.ray_cfg.remote, config, self.task_function, state)
                for config in configs
            ]
            return [
                wait_for(partial(ray.get, run), overrides, directory, time)
                for run, overrides, directory, time in zip(runs, job_overrides, directories, before, strict=True)
            ]

        def _start(self) -> Any:
            import ray

            settings: Any = OmegaConf.to_container(self.ray_cfg.init, resolve=True)
            if not ray.is_initialized():
                try:
                    ray.init(**settings)
                except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
                    reason = str(error).strip().splitlines()[0]
                    raise InputError(f"hydra.launcher.ray.init={settings}: {reason}") from None
            return ray

        def _config(self, number: int, overrides: list[str]) -> DictConfig:
            assert self.config is not None
            assert self.hydra_context is not None
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
                config.hydra.sweep.dir = str(
                    Path(str(config.hydra.sweep.dir)).absolute()
                )  # a worker's working directory is another
                config.hydra.sweep.subdir = str(config.hydra.sweep.subdir)
            for name in config:
                if name != "hydra" and OmegaConf.is_config(config[name]):
                    OmegaConf.resolve(config[name])  # with this process's environment variables; a worker's may differ
            return config
