"""The two ways in: `main`, which is `python train.py`, and `compose`, for notebooks. Both know that a config is good
before anything is read, downloaded or made."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import hydra as hydra_library
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from tl_research import describe
from tl_research.configure.composition import CONF, build, hydra
from tl_research.configure.explain import compose_config
from tl_research.configure.quote import quote
from tl_research.errors import InputError
from tl_research.leaderboard import Leaderboard, collect
from tl_research.run import Run

if TYPE_CHECKING:
    from tl_research.experiment import Experiment

log = logging.getLogger(__name__)

Command = Literal["train", "extract"]

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
    with hydra(config_dir) as composer:
        return build(compose_config(composer, [quote(override) for override in overrides]))


def main(command: Command = "train") -> int:
    """Runs the command line: one run, a sweep (`-m`), or one of Hydra's own questions (`--help`, `--cfg job`, ...).
    What each job does is `command`.

    Returns the exit status: 2 and one line for bad input, 1 for a failure, 130 when interrupted. What it does not
    understand it raises.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing and exiting itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is an interruption like Ctrl-C
    try:
        return _main(command)
    except InputError as error:
        return _told(str(error), BAD_INPUT)
    except HydraException as error:
        return _told(str(error).splitlines()[0], BAD_INPUT)
    except KeyboardInterrupt:
        return _told("interrupted", INTERRUPTED)
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
    print(message, file=sys.stderr)  # noqa: T201
    return status


def _main(command: Command) -> int:
    parser = _Parser(parents=[get_args_parser()], add_help=False)
    options = parser.parse_intermixed_args()
    flags = [argument for argument in sys.argv[1:] if argument not in options.overrides]
    options.overrides = [quote(override, sweep=options.multirun) for override in options.overrides]
    sys.argv[1:] = [*flags, *options.overrides]  # Hydra itself takes them in this order only
    if options.config_path:
        raise InputError("--config-path: the configuration is conf/; --config-dir adds a folder with your own groups")
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        raise InputError("give one of --run, --multirun, --cfg, --info and --shell-completion")
    if not (options.help or options.hydra_help or options.info or options.shell_completion):
        _check(options)
    failures: list[tuple[str, Exception]] = []
    sweeps: set[Path] = set()
    run = hydra_library.main(version_base="1.3", config_path=str(CONF), config_name="config")
    run(_job(command, failures, sweeps))()
    if failures and not options.multirun:
        raise failures[0][1]
    if options.multirun and command == "train":
        _rank(sweeps, show=True)
    for job, error in failures:
        print(f"{job}: {error if isinstance(error, InputError) else repr(error)}", file=sys.stderr)  # noqa: T201
    return FAILED if failures else 0


def _job(command: Command, failures: list[tuple[str, Exception]], sweeps: set[Path]) -> Callable[[DictConfig], float]:
    """The task that Hydra calls for each job. In a sweep one failed job does not end the others, and after each the
    leaderboard is written anew. Adds to `failures` and to `sweeps`, the folders of sweeps."""

    def job(cfg: DictConfig) -> float:
        context = HydraConfig.get()
        directory = Path(context.runtime.output_dir)
        try:
            experiment = build(cfg)
            if command == "extract":
                return float(experiment.extract(directory).metrics["features_computed"])
            return float(experiment.run(directory).metrics[experiment.monitor])
        except Exception as error:  # kept for `main`: Hydra would print lines of its own around it
            single = context.mode == RunMode.RUN
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(directory)
            failures.append(("" if single else f"job {context.job.num} ({context.job.override_dirname})", error))
            if isinstance(error, InputError) and single:
                _discard(directory)
            return float("nan")
        finally:
            if context.mode == RunMode.MULTIRUN and command == "train":
                sweeps.add(Path(context.sweep.dir))
                _rank(sweeps, show=False)

    return job


def _rank(sweeps: set[Path], *, show: bool) -> None:
    for folder in sweeps:
        try:
            board = Leaderboard.of(collect(folder))
            board.write(folder)
        except (InputError, OSError) as error:  # no run got that far, or the disk is full: the jobs' own words matter
            log.debug("%s: no leaderboard: %s", folder, error)
            continue
        if show:
            describe.leaderboard(board.monitor, *board.table(), board.failures(), folder)


def _check(options: Namespace) -> None:
    """Composes and builds every job, and looks for its data and weights, so that bad input shows at once, before the
    first folder is made. In a sweep, jobs that lack something do not keep the others from running."""
    lacking: dict[Any, InputError | None] = {}
    with hydra(options.config_dir) as composer:
        name = options.config_name or "config"
        for overrides in _jobs(composer, options, name):
            cfg = compose_config(composer, overrides, name)
            if options.cfg:
                continue  # it is to be shown, not run
            if not cfg.hydra.run.dir:
                raise InputError("hydra.run.dir is empty: give a folder")
            experiment = build(cfg)
            if not options.multirun and (Path(cfg.hydra.run.dir).expanduser() / "status.json").exists():
                raise InputError(
                    f"hydra.run.dir={cfg.hydra.run.dir}: there is a run in it already; name another directory"
                )
            needs = (experiment.start, experiment.data)
            if needs not in lacking:
                lacking[needs] = _lacks(experiment)
    found = [error for error in lacking.values() if error]
    if found and len(found) == len(lacking):
        raise found[0]


def _lacks(experiment: Experiment) -> InputError | None:
    try:
        experiment.preflight()
    except InputError as error:
        return error
    return None


def _jobs(composer: Any, options: Namespace, name: str) -> Iterator[list[str]]:
    """The overrides of each job: one list, or in a sweep one for each combination."""
    if not options.multirun:
        yield options.overrides
        return
    cfg = compose_config(composer, options.overrides, name, RunMode.MULTIRUN)
    parsed = OverridesParser.create(config_loader=composer.config_loader).parse_overrides(
        list(cfg.hydra.overrides.task)
    )
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        for overrides in batch:
            yield [*cfg.hydra.overrides.hydra, *overrides]


def _discard(directory: Path) -> None:
    """Takes back a run directory of ours in which nothing has happened yet: bad input leaves no file behind."""
    if (directory / "status.json").is_file() and Run.open(directory).status.get("pid") != os.getpid():
        return  # somebody else's run, which is why ours was refused
    ours = {".hydra", "train.log", "status.json", "config.yaml", "classes.json"}
    if directory.is_dir() and {p.name for p in directory.iterdir()} <= ours:
        shutil.rmtree(directory)
        for parent in (directory.parent, directory.parent.parent):
            if parent.name and not any(parent.iterdir()) and parent != Path.cwd():
                parent.rmdir()
