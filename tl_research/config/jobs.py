"""What Hydra calls for each job. It holds under every launcher that a job which is done is not done again, that its
status tells what became of it, and that the leaderboard is kept."""

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

from tl_research.config.compose import build_experiment
from tl_research.errors import InputError
from tl_research.reports import html_report
from tl_research.reports.leaderboard import Leaderboard, collect, titles
from tl_research.reports.summary import show_leaderboard, show_report_path
from tl_research.system.console import show_error
from tl_research.training.pruning import PrunedError

log = logging.getLogger(__name__)

Command = Literal["train", "extract"]

# Reading one run takes some milliseconds: so the leaderboard costs a sweep no more than a few hundredths of its time.
SECONDS_A_RUN = 0.1


def train(cfg: DictConfig) -> float:
    """One job: the number that the sweep compares, NaN for none. Raises what `Experiment.run` raises, but in a sweep,
    where the run's status tells it, and the log."""
    return _job("train", cfg)


def extract(cfg: DictConfig) -> float:
    """One job of `python -m tl_research extract`: the number of features computed."""
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
        return float(experiment.run(directory, existing).metrics[experiment.monitor])
    except OSError as error:
        if error.filename is None:
            error.filename = str(directory)
        raise


def run(context: HydraContext, task: TaskFunction, config: DictConfig) -> float:
    """In the process of a job of `hydra/launcher=processes`: Hydra's own way to run it, on a config that was composed
    in the sweep's process."""
    setup_globals()
    returned = run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return float(returned.return_value)


def rank(folder: Path, *, patient: bool = False) -> Leaderboard | None:
    """Writes the leaderboard of the runs below a folder anew; None where there are none, or no room for it. A `patient`
    caller leaves one be that is young for its size."""
    if patient and _is_young(folder / "leaderboard.csv"):
        return None
    try:
        board = Leaderboard.of(collect(folder))
        board.write(folder)
    except (InputError, OSError) as error:  # what the jobs say matters more
        log.debug("%s: no leaderboard: %s", folder, error)
        return None
    return board


def _is_young(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age < SECONDS_A_RUN * sum(1 for _ in path.parent.iterdir())


def conclude(folder: Path) -> None:
    """The leaderboard of a sweep that has ended, on disk and on the screen, and its report."""
    board = rank(folder)
    if board is None:
        return
    show_leaderboard(board.monitor, *board.table(), [], folder)
    with contextlib.suppress(OSError):  # a full disk, of which the jobs have told
        show_report_path(html_report.write_report(folder))


def tell_not_done(folder: Path) -> bool:
    """Says on standard error which runs below a sweep's folder have said since it began, which its `.lock` tells, that
    they are not done; True if any of them should be."""
    began = (folder / ".lock").stat().st_mtime  # one clock for all machines: the file system's
    failed, skipped = [], Counter[str]()
    try:
        entries = collect(folder)
    except InputError as error:  # no job has come so far
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
