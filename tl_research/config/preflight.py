"""Preflight: every job is composed and built, and what it needs is looked for, before the first folder is made."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import RunMode
from omegaconf import DictConfig

from tl_research.backend.workers import check_cluster
from tl_research.config import grid
from tl_research.config.compose import build_experiment, check_plugins, hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.hydra_internals import Hydra
from tl_research.config.output_dirs import sweep_dir
from tl_research.config.search_preflight import read_search
from tl_research.errors import InputError

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

log = logging.getLogger(__name__)


def check_jobs(command: str, options: Namespace) -> Path | None:
    """Compose every job before the first folder is made; returns a sweep's folder, None for a single run.

    Of a sweep the data and weights are looked for, too: jobs that lack them do not keep the others from running.

    Raises:
        InputError: a job cannot be composed, or no job has what it needs.
        ExceptionGroup: several reasons of that kind.
    """
    name = options.config_name or "config"
    found = _Findings()
    with hydra(options.config_dir) as composer:
        if not options.multirun:
            _check_job(composer, options, options.overrides, None, found)
            _raise(found.wrong)
            return None
        options.overrides = grid.spread(composer, options.overrides, name)
        master = compose_config(composer, options.overrides, name, RunMode.MULTIRUN)
        check_plugins(master)
        for overrides in _jobs(composer, master):
            _check_job(composer, options, overrides, master, found)
    _raise(found.wrong or ([] if found.healthy else found.lacking))
    for error in found.lacking:
        log.warning("to be skipped: %s", error)
    if master.hydra.sweep.dir == "auto":
        own = [f"{key}={getattr(options, key)}" for key in ("config_dir", "config_name") if getattr(options, key)]
        return sweep_dir(command, [*options.overrides, *own])
    return Path(str(master.hydra.sweep.dir)).expanduser()


@dataclass
class _Findings:
    """What has been found of the jobs looked at: reasons, each once, and how many jobs have all they need."""

    wrong: list[InputError] = field(default_factory=list)
    lacking: list[InputError] = field(default_factory=list)
    healthy: int = 0
    _looked: dict[Any, InputError | None] = field(default_factory=dict)

    def look(self, experiment: Experiment) -> None:
        """Whether there are weights and images; asked once, though a hundred jobs want the same."""
        data = replace(experiment.data, split_seed=0, fold=None, folds=None, fraction=1.0, per_class=None)
        errors = [self._look(part) for part in (data, experiment.start)]
        self.healthy += not any(errors)
        for error in errors:
            if error:
                self.add(error, self.lacking)

    def _look(self, part: Any) -> InputError | None:
        if part not in self._looked:
            try:
                self._looked[part] = part.preflight()
            except InputError as error:
                self._looked[part] = error
        return self._looked[part]

    @staticmethod
    def add(error: InputError, errors: list[InputError]) -> None:
        """Unless it has been said."""
        if str(error) not in map(str, errors):
            errors.append(error)


def _check_job(
    composer: Hydra, options: Namespace, overrides: list[str], master: DictConfig | None, found: _Findings
) -> None:
    try:
        cfg = compose_config(composer, overrides, options.config_name or "config")
        if options.cfg:
            return  # it is to be shown, not run
        if not cfg.hydra.run.dir:
            raise InputError("hydra.run.dir is empty: give a folder")
        experiment = build_experiment(cfg)
        check_cluster(experiment.trainer.distribution, sweep=master is not None)
        if master is None:  # a single run looks for its data and weights itself, before it does anything else
            _demand_free(Path(cfg.hydra.run.dir).expanduser(), experiment.fresh)
        else:
            _demand_same_plugins(cfg, master)
            found.look(experiment)
    except InputError as error:
        found.add(error, found.wrong)


def _demand_free(directory: Path, fresh: bool) -> None:
    if (directory / "status.json").exists() and not fresh:
        raise InputError(
            f"hydra.run.dir={directory}: there is a run in it already; name another directory, or add fresh=true to "
            f"replace it"
        )


def _demand_same_plugins(cfg: DictConfig, master: DictConfig) -> None:
    for group in ("hydra/launcher", "hydra/sweeper"):
        ours, theirs = (c.hydra.runtime.choices.get(group) for c in (master, cfg))
        if ours != theirs:
            raise InputError(
                f"{group}={theirs}: one job of the sweep asks for it, and Hydra would go on with {ours}; give "
                f"{group}={theirs} on the command line, for all jobs"
            )


def _raise(errors: list[InputError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("bad input", errors)


def _jobs(composer: Hydra, master: DictConfig) -> Iterator[list[str]]:
    """The overrides of each job of a sweep: those for Hydra, and one combination of the others. Of a search, jobs at
    the corners of its space."""
    if master.hydra.runtime.choices["hydra/sweeper"] == "optuna":
        yield from read_search(composer, master).jobs
        return
    for overrides in grid.grid_jobs(composer, master):
        yield [*master.hydra.overrides.hydra, *overrides]
