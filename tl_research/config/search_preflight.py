"""Preflight of a search (`hydra/sweeper=optuna`): report errors that would stop it before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tl_research.config.compose import build_experiment
from tl_research.config.compose_errors import compose_config
from tl_research.config.constraints import shown
from tl_research.config.hydra_internals import Hydra
from tl_research.config.search_space import Dimension, Space, read_space
from tl_research.errors import InputError
from tl_research.training.pruning import load_optuna

_MOST_PROBES = 64
_NUMBERS = (("n_trials", 1, False), ("startup", 0, False), ("seed", 0, True), ("batch", 1, True))
_OPTIONS = (("sampler", ("tpe", "random")), ("pruner", ("median", "none")))


@dataclass(frozen=True)
class Search:
    """A validated search: its space, the metric that compares trials, and the overrides of jobs at its ends."""

    space: Space
    monitor: str
    jobs: tuple[list[str], ...]


def read_search(composer: Hydra, master: DictConfig) -> Search:
    """Read a search from its composed config and build the jobs at the ends of its space. Values that are only wrong in
    combination would be failed trials, so they stop the search only if no job is left.

    Raises:
        InputError: Optuna is not installed, a setting is out of range, the space cannot be read, a key or a bound is
            wrong, or trials could not be compared.
    """
    load_optuna()
    settings = master.hydra.sweeper
    _check_settings(settings)
    params: Any = OmegaConf.to_container(settings.params or OmegaConf.create({}))
    space = read_space(params, list(master.hydra.overrides.task), composer.config_loader)
    jobs, monitors, refusals = [], set(), []
    for probe in islice(space.probes(), _MOST_PROBES):
        job = [*master.hydra.overrides.hydra, *probe]
        try:
            monitors.add(build_experiment(compose_config(composer, job, master.hydra.job.config_name)).monitor)
            jobs.append(job)
        except InputError as error:
            if _is_about(error, space.dimensions):
                raise
            refusals.append(error)
    if not jobs:
        raise refusals[0]
    return Search(space, _one_of(sorted(monitors)), tuple(jobs))


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key, least, null in _NUMBERS:
        value = settings[key]
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not good and not (null and value is None):
            also = " or null" if null else ""
            raise InputError(f"hydra.sweeper.{key}={shown(value)}: should be a whole number of at least {least}{also}")
    for key, options in _OPTIONS:
        if settings[key] not in options:
            raise InputError(f"hydra.sweeper.{key}={shown(settings[key])}: should be '{options[0]}' or '{options[1]}'")


def _is_about(error: InputError, dimensions: Sequence[Dimension]) -> bool:
    """Whether an error concerns one of these keys alone, not a combination of keys."""
    return any(re.match(rf"{re.escape(d.name)}(=\S*)?: ", str(error)) for d in dimensions)


def _one_of(monitors: list[str]) -> str:
    if len(monitors) > 1:
        raise InputError(f"monitor={','.join(monitors)}: trials are compared by one; give one")
    return monitors[0]
