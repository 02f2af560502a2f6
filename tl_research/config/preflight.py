"""Preflight: compose and build every job, and look for the data and weights of a sweep, before anything is written."""

from __future__ import annotations

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tl_research.backend.workers import check_cluster
from tl_research.config import grid
from tl_research.config.compose import build_experiment, check_plugins, hydra
from tl_research.config.compose_errors import compose_config, is_group
from tl_research.config.hydra_internals import Hydra
from tl_research.config.output_dirs import sweep_dir
from tl_research.config.search_preflight import read_search
from tl_research.errors import CombinationError, InputError

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

log = logging.getLogger(__name__)


def check_jobs(command: str, options: Namespace) -> Path | None:
    """Compose every job before the first folder is made; returns a sweep's folder, None for a single run.

    For a sweep, look for data and weights too. A job without them does not stop the others, nor does one whose values
    are valid but do not go together (`grid.left_out`).

    Raises:
        InputError: a job cannot be composed, or no job has what it needs.
        ExceptionGroup: several reasons of that kind.
    """
    name = options.config_name or "config"
    findings = _Findings()
    grid.left_out.clear()
    with hydra(options.config_dir) as composer:
        if not options.multirun:
            _refuse_without_multirun(options)
            _check_job(composer, options, options.overrides, None, findings)
            _raise(findings.wrong)
            return None
        options.overrides = grid.spread(composer, options.overrides, name)
        master = compose_config(composer, options.overrides, name, RunMode.MULTIRUN)
        check_plugins(master)
        jobs = list(_jobs(composer, master))
        for overrides in jobs:
            _check_job(composer, options, overrides, master, findings)
        _demand_place(master, "hydra.sweep.dir", findings.experiments)
    _raise(findings.wrong or ([] if findings.healthy else findings.refusals))
    for (_, message), impossible in findings.impossible.items():
        shared = set(impossible[0]).intersection(*impossible) - set(jobs[0]).intersection(*jobs)
        words = " ".join(text for text in impossible[0] if text in shared)
        log.warning("left out: %s (%d job(s)): %s", words, len(impossible), message)
    for error in findings.lacking:
        log.warning("to be skipped: %s", error)
    if master.hydra.sweep.dir == "auto":
        own = [f"{key}={getattr(options, key)}" for key in ("config_dir", "config_name") if getattr(options, key)]
        return sweep_dir(command, [*options.overrides, *own])
    return Path(str(master.hydra.sweep.dir)).expanduser()


@dataclass
class _Findings:
    """Errors of the jobs checked so far, each once, and the number of jobs that have everything they need. The jobs
    that are impossible combinations are those of one choice of options and one message."""

    wrong: list[InputError] = field(default_factory=list)
    lacking: list[InputError] = field(default_factory=list)
    impossible: dict[tuple[tuple[str, ...], str], list[list[str]]] = field(default_factory=dict)
    healthy: int = 0
    experiments: list[Experiment] = field(default_factory=list)
    _checked: dict[Any, InputError | None] = field(default_factory=dict)

    def check(self, experiment: Experiment) -> None:
        """Check that a job's data and weights are available; each distinct source is checked once for all jobs."""
        self.experiments.append(experiment)
        data = replace(experiment.data, split_seed=0, fold=None, folds=None, repeat=0, fraction=1.0, per_class=None)
        parts = (data, experiment.start, *filter(None, experiment.callbacks.values()))
        errors = [self._check(part) for part in parts]
        self.healthy += not any(errors)
        for error in errors:
            if error:
                self.add(error, self.lacking)

    def _check(self, part: Any) -> InputError | None:
        if part not in self._checked:
            try:
                self._checked[part] = part.preflight()
            except InputError as error:
                self._checked[part] = error
        return self._checked[part]

    @property
    def refusals(self) -> list[InputError]:
        """Return why no job of a sweep can run."""
        return [*map(InputError, dict.fromkeys(message for _, message in self.impossible)), *self.lacking]

    @staticmethod
    def add(error: InputError, errors: list[InputError]) -> None:
        """Append an error unless the same message is there."""
        if str(error) not in map(str, errors):
            errors.append(error)


def _check_job(
    composer: Hydra, options: Namespace, overrides: list[str], master: DictConfig | None, findings: _Findings
) -> None:
    try:
        cfg = compose_config(composer, overrides, options.config_name or "config")
        if options.cfg:
            return  # the config is only printed
        if not cfg.hydra.run.dir:
            raise InputError("hydra.run.dir is empty: give a folder")
        experiment = build_experiment(cfg)
        check_cluster(experiment.trainer.distribution, sweep=master is not None)
        if master is None:  # a single run checks its data and weights itself, before anything else
            _demand_place(cfg, "hydra.run.dir", [experiment])
            _check_unused(Path(cfg.hydra.run.dir).expanduser(), experiment.fresh)
        else:
            _check_same_plugins(cfg, master)
            findings.check(experiment)
    except CombinationError as error:
        if master is None:
            raise
        job = overrides[len(master.hydra.overrides.hydra) :]
        grid.left_out.add(tuple(job))
        options_chosen = tuple(text for text in job if is_group(composer, text.partition("=")[0]))
        findings.impossible.setdefault((options_chosen, str(error)), []).append(job)
    except InputError as error:
        findings.add(error, findings.wrong)


def _refuse_without_multirun(options: Namespace) -> None:
    """Refuse what only a sweep has, which one run would leave aside without a word. `hparams` stands in the command
    that repeats a search's best trial, too."""
    for text in [] if options.cfg else options.overrides:
        if text.startswith(("hydra/sweeper=", "hydra.sweeper.", "hydra.sweep.")):
            raise InputError(f"{text}: this is for a sweep; add -m")
        if text.startswith("hparams=") and text != "hparams=null":
            log.warning("%s: one run; a search needs -m", text)


def _demand_place(cfg: DictConfig, key: str, experiments: Sequence[Experiment]) -> None:
    """Check that outputs can be written, and that a folder which the command names does not lie in that of the
    photographs. Raises `InputError`."""
    given = next((text for text in cfg.hydra.overrides.hydra if text.startswith(f"{key}=")), None)
    name = str(OmegaConf.select(cfg, key))
    folder = Path("outputs" if name == "auto" else name).expanduser().absolute()
    with contextlib.suppress(OSError):  # no path at all, which writing reports
        there = next(path for path in (folder, *folder.parents) if path.exists())
        why = f"{there} is a file" if not there.is_dir() else f"{there} may not be written"
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(f"{key}: cannot write {name}: {why}; {key}=FOLDER names another folder")
        for data in [experiment.data for experiment in experiments] if given else []:
            for own in ("root", "images"):
                root = getattr(data, own, None)
                if root and Path(root).is_dir() and folder.resolve().is_relative_to(Path(root).resolve()):
                    raise InputError(
                        f"{key}={name}: it is within data.{own}={root}, where nothing is written; name another folder"
                    )


def _check_unused(directory: Path, fresh: bool) -> None:
    if (directory / "status.json").exists() and not fresh:
        raise InputError(
            f"hydra.run.dir={directory}: there is a run in it already; name another directory, or add fresh=true to "
            f"replace it"
        )


def _check_same_plugins(cfg: DictConfig, master: DictConfig) -> None:
    for group in ("hydra/launcher", "hydra/sweeper"):
        sweep_option, job_option = (c.hydra.runtime.choices.get(group) for c in (master, cfg))
        if sweep_option != job_option:
            raise InputError(
                f"{group}={job_option}: one job of the sweep asks for it, and Hydra would go on with {sweep_option}; "
                f"give {group}={job_option} on the command line, for all jobs"
            )


def _raise(errors: list[InputError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("bad input", errors)


def _jobs(composer: Hydra, master: DictConfig) -> Iterator[list[str]]:
    """Yield the overrides of each job of a sweep, including Hydra's own; for a search, of jobs at the corners of its
    space."""
    if master.hydra.runtime.choices["hydra/sweeper"] == "optuna":
        yield from read_search(composer, master).jobs
        return
    for overrides in grid.grid_jobs(composer, master):
        yield [*master.hydra.overrides.hydra, *overrides]
