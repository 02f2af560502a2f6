"""`evaluate`: metrics of a finished run on other data."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Annotated, Literal

import typer

from tl_research.commands.arguments import RunArgument, open_run
from tl_research.errors import InputError
from tl_research.system.console import show_error

Split = Literal["train", "val", "test", "all"]


def evaluate_command(
    context: typer.Context,
    run: RunArgument,
    split: Annotated[
        Split | None, typer.Option(help="Images to judge; default: test, or all where the folder has no splits")
    ] = None,
) -> None:
    """Evaluate a run on other data, which overrides name; print the metrics as JSON. Some classes may be missing.

    Example: python -m tl_research evaluate outputs/2026-01-31/12-00-00-0 data=folder data.root=PHOTOS
    """
    from tl_research import compose
    from tl_research.backend.start import start_backend
    from tl_research.evaluation.predict import evaluate_on

    opened = open_run(run)
    if not any(argument.startswith("data=") for argument in context.args):
        raise InputError("evaluate: say on which data, such as data=folder data.root=PHOTOS")
    source = compose(context.args).data
    if source.window is None:  # as for training: without it, floats beyond 255 cannot be read
        source = replace(source, window=opened.pixel_range.window)
    data = source.load_labelled(opened.class_names())
    for line in (*data.notes, *data.warnings):
        show_error(f"{data.root}: {line}")
    start_backend()
    sys.stdout.write(json.dumps(evaluate_on(opened, data, split), indent=2) + "\n")
