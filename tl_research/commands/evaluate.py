"""`evaluate`: metrics of a finished run on other data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_research.commands.arguments import RunArgument, open_run
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.system.console import show_error

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

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
    result = evaluate_on(opened, data, split)
    for line in _already_known(opened, data, result["split"]):
        show_error(f"{data.root}: {line}")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _already_known(run: Run, data: DataModule, split: str) -> Iterator[str]:
    """Warn of images that the run learned from, or that its own test has judged, as far as their paths tell."""
    judged = [path.resolve() for path, part in zip(data.paths, data.split_of, strict=True) if split in ("all", part)]
    tested = {Path(row["path"]).resolve() for row in run.answers("predictions.csv") if row["split"] == "test"}
    if root := run.config.get("data", {}).get("root"):
        folder = Path(root).expanduser().resolve()
        if learned := sum(path.is_relative_to(folder) and path not in tested for path in judged):
            yield f"{learned} of {len(judged)} images are the run's own, and not of its test: it has learned from them"
    if known := len(tested.intersection(judged)):
        yield f"{known} of {len(judged)} images are the run's own test images"
