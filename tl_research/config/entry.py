"""The two entrances: `main`, which is `python train.py`, and `compose`, for notebooks. Both validate the configuration
before anything is read, downloaded or written."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tl_research.config import resume, secondary_worker
from tl_research.config.compose import build_experiment, hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.exit_status import run_reporting_errors
from tl_research.config.hydra_internals import get_args_parser
from tl_research.config.jobs import Command
from tl_research.config.override_quoting import quote
from tl_research.config.preflight import check_jobs
from tl_research.config.run_modes import run_resumed, run_single, run_sweep
from tl_research.errors import InputError
from tl_research.system.console import silenced

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Experiment:
    """Compose the experiment that `python train.py OVERRIDES...` would run, for notebooks and scripts.

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
    """Run `command` as the command line says: one run, a sweep (`-m`), or a question to Hydra (`--help`, `--cfg job`).

    Returns the exit status; raises only unexpected errors.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing and exiting itself
    sys.path.append(str(Path.cwd()))  # for the user's own classes; `python -m` has it, `python CLONE/train.py` has not
    return run_reporting_errors(lambda: _main(command))


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists what there is")


def _main(command: Command) -> int:
    parser = _Parser(parents=[get_args_parser()], add_help=False)
    options = parser.parse_intermixed_args()
    flags = [argument for argument in sys.argv[1:] if argument not in options.overrides]
    with secondary_worker.quiet_if_secondary(options):
        return _command(command, options, flags)


def _demand_no_gaps(overrides: Sequence[str]) -> None:
    """Refuse values that a space behind or before a comma has torn apart."""
    for one, other in pairwise([*overrides, ""]):
        if "=" in one and (one.endswith(",") or other.startswith(",")) and "=" not in other:
            whole = f"{one}{other}" if other else one.rstrip(",")
            raise InputError(f"{one}: there must be no space beside a comma; write {whole}")


def _command(command: Command, options: Namespace, flags: list[str]) -> int:
    if resume.asked(options.overrides):
        if command != "train" or options.multirun:
            raise InputError("resume goes on with one run of `train`; the same command goes on with a sweep")
        return run_resumed(options.overrides)
    _demand_no_gaps(options.overrides)
    options.overrides = [quote(override, sweep=options.multirun) for override in options.overrides]
    if options.config_path:
        raise InputError("--config-path: the configuration is conf/; --config-dir adds a folder with your own groups")
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        raise InputError("give one of --run, --multirun, --cfg, --info and --shell-completion")
    folder = None
    if not (options.help or options.hydra_help or options.info or options.shell_completion):
        folder = check_jobs(command, options)
        if folder is not None:
            others = [override for override in options.overrides if not override.startswith("hydra.sweep.dir=")]
            options.overrides = [*others, quote(f"hydra.sweep.dir={folder}")]
    sys.argv[1:] = [*flags, *options.overrides]  # Hydra itself takes them in this order only
    if folder is not None:
        silent = any(override.lower() == "verbose=false" for override in options.overrides)
        with silenced(silent):
            return run_sweep(command, folder)
    return run_single(command)
