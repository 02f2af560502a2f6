"""The functions that Hydra calls for each job, under every launcher: run a job unless it is done, and update the
leaderboard."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

from tl_research.config import output_dirs  # noqa: F401 - a job's process needs its resolver job_dir
from tl_research.config.compose import build_experiment
from tl_research.errors import InputError
from tl_research.metrics.classification import monitored
from tl_research.reports import html_report
from tl_research.reports.entries import titles
from tl_research.reports.leaderboard import Leaderboard, collect, write_leaderboards
from tl_research.reports.summary import show_leaderboards, show_report_path
from tl_research.system.console import show_error
from tl_research.training.pruning import PrunedError

log = logging.getLogger(__name__)

Command = Literal["train", "extract"]

# Reading one run takes some milliseconds, so the leaderboard takes at most a few percent of a sweep's time.
SECONDS_A_RUN = 0.1


def train(cfg: DictConfig) -> float:
    """Run one training job and return the metric that the sweep compares. In a sweep errors of `Experiment.run` are
    logged, and the value is NaN; otherwise they are raised."""
    return _job("train", cfg)


def extract(cfg: DictConfig) -> float:
    """Run one job of `python -m tl_research extract` and return the number of features computed."""
    return _job("extract", cfg)


def _job(command: Command, cfg: DictConfig) -> float:
    context = HydraConfig.get()
    directory = Path(context.runtime.output_dir)
    if context.mode != RunMode.MULTIRUN:
        return _number(command, cfg, directory, sweep=False)
    try:
        return _number(command, cfg, directory, sweep=True)
    except PrunedError as error:
        log.info("%s", error)
        return math.nan
    except Exception as error:
        log.error("%s", error, exc_info=None if isinstance(error, InputError) else error)
        return math.nan
    finally:
        if command == "train":
            rank(Path(context.sweep.dir), patient=True)


def _number(command: Command, cfg: DictConfig, directory: Path, *, sweep: bool) -> float:
    experiment = build_experiment(cfg)
    existing: Literal["resume", "refuse"] = "resume" if sweep else "refuse"
    try:
        if command == "extract":
            return float(experiment.extract(directory, existing).metrics["features_computed"])
        metrics = experiment.run(directory, existing).metrics
        return float(metrics.get(monitored(experiment.monitor, metrics), math.nan))
    except OSError as error:
        if error.filename is None:
            error.filename = str(directory)
        raise


def run(context: HydraContext, task: TaskFunction, config: DictConfig) -> float:
    """Run a job of `hydra/launcher=processes` in its process, on a config composed in the sweep's process."""
    setup_globals()
    returned = run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return float(returned.return_value)


def rank(folder: Path, *, patient: bool = False) -> list[Leaderboard]:
    """Write the leaderboards of the runs below a folder; none if there are no runs or they cannot be written. With
    `patient`, recently written ones are kept."""
    if patient and _is_young(folder / "leaderboard.csv"):
        return []
    try:
        boards = Leaderboard.for_each_data_set(collect(folder))
        write_leaderboards(boards, folder)
    except (InputError, OSError) as error:  # not worth failing the sweep
        log.debug("%s: no leaderboard: %s", folder, error)
        return []
    return boards


def _is_young(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age < SECONDS_A_RUN * sum(1 for _ in path.parent.iterdir())


def conclude(folder: Path) -> None:
    """Write and print the leaderboard of a sweep that has ended, and write its report."""
    boards = rank(folder)
    if not boards:
        return
    show_leaderboards(boards, folder, failures=False)
    with contextlib.suppress(OSError):  # a full disk, which the jobs have reported
        show_report_path(html_report.write_report(folder))


def tell_not_done(folder: Path) -> bool:
    """Print to standard error the runs of a sweep that are not done, with reasons; True if any of them failed. Only
    runs whose status changed since the sweep began (the time of its `.lock`) are considered."""
    began = (folder / ".lock").stat().st_mtime  # the file system's clock, which all machines share
    failed, skipped = [], Counter[str]()
    try:
        entries = collect(folder)
    except InputError as error:  # no job has started a run
        show_error(error)
        return True
    for title, entry in zip(titles(entries), entries, strict=True):
        if entry.updated < began and entry.state != "running":
            continue
        reason = entry.reason or "another process is at work in it"
        if entry.state == "skipped":
            skipped[reason] += 1
        elif entry.state not in ("done", "pruned"):
            failed.append(f"{title}: {entry.state}: {reason}")
    for line in [*(f"{count} skipped: {reason}" for reason, count in skipped.items()), *failed]:
        show_error(line)
    return bool(failed)


COMMANDS: dict[Command, Callable[[DictConfig], float]] = {"train": train, "extract": extract}
