"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.runs.run import Run
from tl_research.system.console import show_error

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a command that also takes overrides."""

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run directory, such as outputs/2026-01-31/12-00-00-0")
]


def open_run(path: Path) -> Run:
    """Open a run that has a model; warn on standard error if it is not done. Raises `InputError` if it has none."""
    run = Run.open(path)
    run.class_names()
    run.model_file()
    state = run.status["state"]
    if state != "done":
        show_error(f"{path}: the run's status is '{state}'")
    return run
