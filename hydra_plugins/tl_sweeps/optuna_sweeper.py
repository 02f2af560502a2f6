"""`hydra/sweeper=optuna`: a hyperparameter search whose trials are the jobs of a sweep, under any launcher.

Optuna proposes (ask), the launcher runs, Optuna gets the result (tell). All of its state is in a journal file, so the
same command continues an interrupted search.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from optuna.trial import Trial

    from tl_research.sweeps.optuna_study import SearchStudy


class OptunaSweeper(Sweeper):
    """Search for the best values of some keys. The arguments are the keys of conf/hydra/sweeper/optuna.yaml, explained
    there; `sweep` checks them, because Hydra would wrap an error raised by the constructor."""

    def __init__(
        self,
        n_trials: Any,
        seed: Any,
        sampler: Any,
        startup: Any,
        pruner: Any,
        batch: Any,
        study: Any,
        params: Mapping[str, Any] | None,
    ) -> None:
        self.n_trials, self.seed, self.sampler, self.startup = n_trials, seed, sampler, startup
        self.pruner, self.batch, self.journal = pruner, batch, study
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments and make the launcher. Hydra calls this before `sweep`."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials missing from `n_trials`, print the best one and return its value.

        Raises:
            InputError: the search is refused by `read_search`, the study belongs to another search, or no trial
                completed.
        """
        from tl_research.config.search_preflight import read_search
        from tl_research.sweeps.optuna_study import SearchStudy

        assert self.config is not None
        composer = GlobalHydra.instance().hydra
        assert composer is not None
        search = read_search(composer, self.config)
        folder = Path(str(self.config.hydra.sweep.dir))
        study = SearchStudy(
            Path(self.journal).expanduser() if self.journal else folder / "study.journal",
            search.monitor,
            search.space,
            sampler=self.sampler,
            seed=self.seed,
            startup=self.startup,
            parallel=self._batch(),
            fresh=search.space.is_fresh,
        )
        try:
            self._check_comparable(study)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            while trials := study.ask(self.n_trials):
                self._run(study, trials)
                if getattr(getattr(self.launcher, "pool", None), "enough_failed", False):
                    break
            return self._end(study, folder)
        finally:
            study.close()

    def _check_comparable(self, study: SearchStudy) -> None:
        """Refuse to continue a search whose images, weights or code have changed: its trials would not be comparable.
        Checking the last trial that has a run is enough, since a refused search gets no more trials."""
        from tl_research.config.job_outcome import is_outdated
        from tl_research.errors import InputError

        for trial in reversed(study.trials()):
            if trial.state.name not in ("COMPLETE", "PRUNED"):
                continue
            job = [*study.space.fixed, *study.space.values(trial.params)]
            config = self._config(job, trial.number)
            outdated = is_outdated(config, _directory(config))
            if outdated:
                raise InputError(
                    f"{study.journal}: images, weights or code have changed since trial {trial.number}; begin the "
                    f"search anew with fresh=true, or name another hydra.sweep.dir"
                )
            if outdated is not None:
                return

    def _batch(self) -> int:
        assert self.config is not None
        if self.batch:
            return int(self.batch)
        jobs = OmegaConf.select(self.config, "hydra.launcher.n_jobs") or 1
        return int(jobs) if jobs > 0 else os.cpu_count() or 1

    def _run(self, study: SearchStudy, trials: Sequence[Trial]) -> None:
        """Run trials in parallel. Equal trials share a job; overrides that an earlier trial had are not run again."""
        from tl_research.config.job_outcome import outcome
        from tl_research.runs.reader import read_metrics

        assert self.launcher is not None
        jobs: dict[tuple[str, ...], list[Trial]] = {}
        for trial in trials:
            values = study.space.values(trial.params)
            if not self._tell_known(study, trial, values):
                jobs.setdefault(tuple(values), []).append(trial)
        if not jobs:
            return
        overrides = [
            [*study.space.fixed, *values, *([] if self.pruner == "none" else _address(study, same[0]))]
            for values, same in jobs.items()
        ]
        first = next(iter(jobs.values()))[0].number
        returns = self.launcher.launch(overrides, initial_job_idx=first)
        for number, (same, returned) in enumerate(zip(jobs.values(), returns, strict=True)):
            directory = _directory(self._config(overrides[number], first + number))
            value, reason = outcome(returned, directory)
            for trial in same:
                trial.set_user_attr("random_weights", bool(read_metrics(directory).get("random_weights")))
                _tell(study, trial, value, reason)

    def _tell_known(self, study: SearchStudy, trial: Trial, values: list[str]) -> bool:
        """Record a trial that needs no run: an equal one has ended, or it cannot be composed. True if so."""
        earlier, refusal = study.known(values), self._refusal([*study.space.fixed, *values])
        if earlier and earlier.state.name == "PRUNED":
            trial.set_user_attr("pruned", earlier.user_attrs.get("pruned"))
            _tell(study, trial, None, None)
        elif earlier or refusal:
            _tell(study, trial, earlier.value if earlier else None, refusal)
        return bool(earlier or refusal)

    def _refusal(self, job: list[str]) -> str | None:
        """Return why a job cannot be composed, or None. The launcher would end the whole search with this error."""
        try:
            self.validate_batch_is_legal([job])
        except (HydraException, OmegaConfBaseException) as error:
            return str(error).splitlines()[0]
        return None

    def _config(self, job: list[str], number: int) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _end(self, study: SearchStudy, folder: Path) -> float:
        from tl_research.errors import InputError
        from tl_research.runs.run import Run
        from tl_research.sweeps.optuna_study import write_best
        from tl_research.system.console import show

        best = study.best()
        if best is None:
            reasons = [t.user_attrs["failed"] for t in study.trials() if "failed" in t.user_attrs]
            raise InputError(
                f"{folder}: no trial was completed"
                + (f"; the last says: {reasons[-1]}" if reasons else "; other processes are at it")
            )
        job = [*study.space.fixed, *study.space.values(best.params)]
        write_best(study, best, folder, Run(_directory(self._config(job, best.number))).config_options)
        states = [trial.state.name for trial in study.trials()]
        of = f"best of {states.count('COMPLETE')} trials ({states.count('PRUNED')} more pruned)"
        values = " ".join(study.space.values(best.params))
        show(f"{of}: {study.monitor} {best.value:.4g}  {values}", folder)
        return float(best.value or 0)


def _directory(config: DictConfig) -> Path:
    """Return the directory in which a job writes, under any launcher."""
    return Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))


def _address(study: SearchStudy, trial: Trial) -> list[str]:
    """Return the override that tells a job its trial; as one of Hydra's own it does not change the job's directory."""
    from tl_research.config.override_quoting import quote
    from tl_research.training.pruning import TRIAL_VARIABLE

    return [quote(f"++hydra.job.env_set.{TRIAL_VARIABLE}={study.journal}:{study.study.study_name}:{trial.number}")]


def _tell(study: SearchStudy, trial: Trial, value: float | None, reason: str | None) -> None:
    from tl_research.system.console import show

    ended = study.tell(trial, value, reason)
    results = {"COMPLETE": f"{study.monitor} {ended.value or 0:.4g}", "PRUNED": ended.user_attrs.get("pruned")}
    result = results.get(ended.state.name, f"failed: {reason or 'it gave no number'}")
    show(f"trial {trial.number}: {result}  {' '.join(study.space.values(trial.params))}")
