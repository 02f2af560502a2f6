"""The three ways in which a command runs: one job in this process, an earlier run continued, or a sweep."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import hydra as hydra_library
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tl_research.config import jobs, resume
from tl_research.config.compose import CONF
from tl_research.config.exit_status import FAILED
from tl_research.config.jobs import Command
from tl_research.errors import DivergedError, InputError
from tl_research.runs.run import Run
from tl_research.system.locks import try_lock

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"  # as in conf/config.yaml


def _start_hydra(task: Callable[[DictConfig], float]) -> None:
    hydra_library.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def run_single(command: Command) -> int:
    """Run one job in this process. Raises whatever the job raises; a refused run leaves no directory."""
    failures: list[BaseException] = []

    def collect_failure(cfg: DictConfig) -> float:
        try:
            return jobs.COMMANDS[command](cfg)
        except KeyboardInterrupt:
            directory = Path(HydraConfig.get().runtime.output_dir)
            again = "interrupted; the same command goes on from here"
            failures.append(KeyboardInterrupt(resume.interruption(directory) if command == "train" else again))
            return math.nan
        except Exception as error:  # Hydra would print lines of its own around it
            failures.append(error)
            if isinstance(error, InputError) and not isinstance(error, DivergedError):
                _discard(Path(HydraConfig.get().runtime.output_dir))
            return math.nan

    _start_hydra(collect_failure)
    if failures:
        raise failures[0]
    return 0


def run_resumed(overrides: list[str]) -> int:
    """Continue an earlier run from its last checkpoint, without Hydra: its config.yaml is resolved already."""
    experiment = resume.resumed(overrides)
    assert experiment.directory is not None
    path = Path(experiment.directory, "train.log")
    log_file = logging.FileHandler(path, encoding="utf-8", delay=True, errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=[logging.StreamHandler(sys.stderr), log_file])
    try:
        experiment.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume.interruption(Path(experiment.directory))) from None
    return 0


def run_sweep(command: Command, folder: Path) -> int:
    """Run all jobs of a sweep, then write its leaderboard and list the failures."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise InputError(f"hydra.sweep.dir={folder}: another sweep is at work in it; wait for it, or name another")
    (folder / ".lock").touch()
    with closing(lock):
        try:
            _start_hydra(jobs.COMMANDS[command])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; the same command goes on from here: {folder}") from None
        finally:
            if command == "train":
                jobs.conclude(folder)
        return FAILED if jobs.tell_not_done(folder) else 0


def _discard(directory: Path) -> None:
    """Remove the directory of a run that was refused before it did anything: bad input leaves no file behind."""
    if (directory / "status.json").is_file() and Run.open(directory).status.get("pid") != os.getpid():
        return  # it is another process's run, so this one was refused
    ours = {".hydra", "train.log", "status.json", "config.yaml", "classes.json", "data_check.json", ".lock"}
    if directory.is_dir() and {p.name for p in directory.iterdir()} <= ours:
        shutil.rmtree(directory)
        for parent in (directory.parent, directory.parent.parent):
            if parent.name and not any(parent.iterdir()) and parent != Path.cwd():
                parent.rmdir()
