"""`evaluate`: metrics of a finished run on other data."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import typer

from tl_research.commands.arguments import RunArgument, open_run
from tl_research.errors import InputError


def evaluate_command(context: typer.Context, run: RunArgument) -> None:
    """Evaluate a run on the test images of another data set, which overrides name; print the metrics as JSON.

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
    source.preflight()
    start_backend()
    metrics = evaluate_on(opened, source.load())
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")
