"""Run the workers of `trainer.distribution=multi_worker` other than the first without visible output or files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from tl_research.backend.strategy import WorkerLostError
from tl_research.backend.workers import worker_rank
from tl_research.config import resume
from tl_research.config.compose import hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.override_quoting import quote
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.system.process import redirected

RUN_DIR = "hydra.run.dir="


def quiet_if_secondary(options: Namespace) -> Any:
    """Return a context for the command. A worker other than the first gets a temporary run directory, and its terminal
    shows errors only.

    Raises:
        InputError: `multi_worker` has no valid `TF_CONFIG`.
    """
    resumes = resume.asked(options.overrides)
    asks = options.help or options.hydra_help or options.info or options.shell_completion or options.cfg
    if asks or options.multirun or not (resumes or "TF_CONFIG" in os.environ):
        return nullcontext()
    if _distribution(options) != "multi_worker":
        return nullcontext()
    number = worker_rank()
    return _secondary(number, options) if number else nullcontext()


def _distribution(options: Namespace) -> Any:
    if resume.asked(options.overrides):
        return Run.open(resume.named(options.overrides)).config.get("trainer", {}).get("distribution")
    overrides = [quote(override) for override in options.overrides]
    with hydra(options.config_dir) as composer:
        return compose_config(composer, overrides, options.config_name or "config").trainer.get("distribution")


@contextmanager
def _secondary(number: int, options: Namespace) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="tl_research-worker-", ignore_cleanup_errors=True) as folder:
        run = Path(folder, "outputs", "run")  # nested, because empty parents of a refused run are removed
        if resume.asked(options.overrides):
            # The first worker writes nothing meanwhile: it waits for the others before it trains.
            left_out = shutil.ignore_patterns("*.keras", "tensorboard", ".lock")
            shutil.copytree(resume.named(options.overrides), run, ignore=left_out)
            others = [text for text in options.overrides if not text.startswith(resume.KEY)]
            options.overrides = [*others, f"{resume.KEY}{run}"]
        else:
            others = [text for text in options.overrides if not text.startswith(RUN_DIR)]
            options.overrides = [*others, f"{RUN_DIR}{run}"]
        try:
            with _silent():
                yield
        except KeyboardInterrupt:  # the run to go on with is the first worker's
            raise KeyboardInterrupt from None
        except (InputError, HydraException, WorkerLostError) as error:
            error.args = (f"worker {number}: {error}",)
            raise


@contextmanager
def _silent() -> Iterator[None]:
    """Discard all output to the terminal, TensorFlow's included."""
    with Path(os.devnull).open("w") as nowhere, redirected(nowhere.fileno(), 1, 2):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
