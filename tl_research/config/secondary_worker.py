"""The workers of `trainer.distribution=multi_worker` beside the first: what it writes and shows, they do not."""

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

RUN_DIR = "hydra.run.dir="


def quiet_if_beside(options: Namespace) -> Any:
    """A context for the command: in a worker beside the first it has a run directory of its own, which is removed at
    the end, and its terminal shows errors only.

    Raises:
        InputError: there is no good `TF_CONFIG` for `multi_worker`.
    """
    resumes = resume.asked(options.overrides)
    asks = options.help or options.hydra_help or options.info or options.shell_completion or options.cfg
    if asks or options.multirun or not (resumes or "TF_CONFIG" in os.environ):
        return nullcontext()
    if _distribution(options) != "multi_worker":
        return nullcontext()
    number = worker_rank()
    return _beside(number, options) if number else nullcontext()


def _distribution(options: Namespace) -> Any:
    if resume.asked(options.overrides):
        return Run.open(resume.named(options.overrides)).config.get("trainer", {}).get("distribution")
    overrides = [quote(override) for override in options.overrides]
    with hydra(options.config_dir) as composer:
        return compose_config(composer, overrides, options.config_name or "config").trainer.get("distribution")


@contextmanager
def _beside(number: int, options: Namespace) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="tl_research-worker-", ignore_cleanup_errors=True) as folder:
        place = Path(folder, "outputs", "run")  # two below: of a run that was refused the door removes parents, too
        if resume.asked(options.overrides):
            # The first has written nothing since: it waits for the others before it trains.
            whole = shutil.ignore_patterns("*.keras", "tensorboard", ".lock")
            shutil.copytree(resume.named(options.overrides), place, ignore=whole)
            kept = [text for text in options.overrides if not text.startswith(resume.KEY)]
            options.overrides = [*kept, f"{resume.KEY}{place}"]
        else:
            kept = [text for text in options.overrides if not text.startswith(RUN_DIR)]
            options.overrides = [*kept, f"{RUN_DIR}{place}"]
        try:
            with _silent():
                yield
        except (InputError, HydraException, WorkerLostError) as error:
            error.args = (f"worker {number}: {error}",)
            raise


@contextmanager
def _silent() -> Iterator[None]:
    """What is written to the terminal meanwhile, by TensorFlow too, is gone."""
    kept = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        for number, (stream, before) in enumerate(zip((sys.stdout, sys.stderr), kept, strict=True), 1):
            stream.flush()
            os.dup2(before, number)
            os.close(before)
