"""The two ways in: `main`, which is `python train.py`, and `compose`, for notebooks. Both know that a config is good
before anything is read, downloaded or made."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import signal
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra as hydra_library
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from tl_research.backend.strategy import WorkerLostError
from tl_research.config import jobs, output_dirs, resume, secondary_worker  # noqa: F401 - places registers job_dir
from tl_research.config.compose import CONF, build_experiment, hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.hydra_internals import get_args_parser
from tl_research.config.jobs import Command
from tl_research.config.override_quoting import quote
from tl_research.config.preflight import check_jobs
from tl_research.errors import DivergedError, InputError
from tl_research.runs.run import Run
from tl_research.system.console import show_error, silenced
from tl_research.system.locks import try_lock

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"  # as in conf/config.yaml
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = _FULL | {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Experiment:
    """The experiment that `python train.py OVERRIDES...` would run, for notebooks and scripts.

    Args:
        overrides: as on the command line, such as `["backbone=resnet50", "transfer=finetune"]`.
        config_dir: a folder with groups of your own, searched before ours.

    Raises:
        InputError: an unknown key or option, or a value out of range; the message names it.
    """
    if resume.asked(overrides):
        return resume.resumed(overrides)
    with hydra(config_dir) as composer:
        return build_experiment(compose_config(composer, [quote(override) for override in overrides]))


def main(command: Command = "train") -> int:
    """Runs the command line: one run, a sweep (`-m`), or one of Hydra's own questions (`--help`, `--cfg job`, ...).
    What each job does is `command`.

    Returns the exit status: 2 and one line for bad input, 1 for a failure, 130 when interrupted. What it does not
    understand it raises.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("once", r"tl_research\.", FutureWarning)  # an old name is in use
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing and exiting itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is an interruption like Ctrl-C
    try:
        return _main(command)
    except InputError as error:
        return _told(str(error), BAD_INPUT)
    except ExceptionGroup as group:
        return _told("\n".join(map(str, group.exceptions)), BAD_INPUT)
    except HydraException as error:
        return _told(str(error).splitlines()[0], BAD_INPUT)
    except WorkerLostError as error:
        return _told(str(error), FAILED)
    except KeyboardInterrupt as error:
        return _told(str(error) or "interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _told(f"cannot write{where}: {error.strerror}", FAILED if error.errno in _FULL else BAD_INPUT)
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):  # TensorFlow's writers raise exceptions of their own for it
            raise
        return _told(f"cannot write: {os.strerror(errno.ENOSPC)}", FAILED)


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists what there is")


def _told(message: str, status: int) -> int:
    show_error(message)
    return status


def _main(command: Command) -> int:
    parser = _Parser(parents=[get_args_parser()], add_help=False)
    options = parser.parse_intermixed_args()
    flags = [argument for argument in sys.argv[1:] if argument not in options.overrides]
    with secondary_worker.quiet_if_beside(options):
        return _command(command, options, flags)


def _command(command: Command, options: Namespace, flags: list[str]) -> int:
    if resume.asked(options.overrides):
        if command != "train" or options.multirun:
            raise InputError("resume goes on with one run of `train`; the same command goes on with a sweep")
        return _resume(options.overrides)
    options.overrides = [quote(override, sweep=options.multirun) for override in options.overrides]
    if options.config_path:
        raise InputError("--config-path: the configuration is conf/; --config-dir adds a folder with your own groups")
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        raise InputError("give one of --run, --multirun, --cfg, --info and --shell-completion")
    folder = None
    if not (options.help or options.hydra_help or options.info or options.shell_completion):
        folder = check_jobs(command, options)
        if folder is not None:
            kept = [override for override in options.overrides if not override.startswith("hydra.sweep.dir=")]
            options.overrides = [*kept, quote(f"hydra.sweep.dir={folder}")]
    sys.argv[1:] = [*flags, *options.overrides]  # Hydra itself takes them in this order only
    if folder is not None:
        silent = any(override.lower() == "verbose=false" for override in options.overrides)
        with silenced(silent):
            return _sweep(command, folder)
    _once(jobs.COMMANDS[command])
    return 0


def _hydra_main(task: Callable[[DictConfig], float]) -> None:
    hydra_library.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def _once(job: Callable[[DictConfig], float]) -> None:
    """One run. Raises what it raises."""
    failures: list[Exception] = []

    def kept_quiet(cfg: DictConfig) -> float:
        try:
            return job(cfg)
        except Exception as error:  # Hydra would print lines of its own around it
            failures.append(error)
            if isinstance(error, InputError) and not isinstance(error, DivergedError):
                _discard(Path(HydraConfig.get().runtime.output_dir))
            return math.nan

    _hydra_main(kept_quiet)
    if failures:
        raise failures[0]


def _resume(overrides: list[str]) -> int:
    """An earlier run, from its last checkpoint. Hydra has nothing to do here: the run's configuration is resolved."""
    experiment = resume.resumed(overrides)
    assert experiment.directory is not None
    log_file = logging.FileHandler(Path(experiment.directory, "train.log"), delay=True)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=[logging.StreamHandler(sys.stderr), log_file])
    experiment.run()
    return 0


def _sweep(command: Command, folder: Path) -> int:
    """All jobs, then what they come to: the leaderboard, and each failure by name."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise InputError(f"hydra.sweep.dir={folder}: another sweep is at work in it; wait for it, or name another")
    (folder / ".lock").touch()
    with closing(lock):
        try:
            _hydra_main(jobs.COMMANDS[command])
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on from here") from None
        finally:
            if command == "train":
                jobs.conclude(folder)
        return FAILED if jobs.tell_not_done(folder) else 0


def _discard(directory: Path) -> None:
    """Takes back a run directory of ours in which nothing has happened yet: bad input leaves no file behind."""
    if (directory / "status.json").is_file() and Run.open(directory).status.get("pid") != os.getpid():
        return  # somebody else's run, which is why ours was refused
    ours = {".hydra", "train.log", "status.json", "config.yaml", "classes.json", ".lock"}
    if directory.is_dir() and {p.name for p in directory.iterdir()} <= ours:
        shutil.rmtree(directory)
        for parent in (directory.parent, directory.parent.parent):
            if parent.name and not any(parent.iterdir()) and parent != Path.cwd():
                parent.rmdir()
