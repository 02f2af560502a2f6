"""`card`: the model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import RunArgument, is_zip, open_run
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.system.console import show


def card_command(
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; default: RUN/model_card.md, for a zip NAME-model_card.md beside it"
        ),
    ] = None,
) -> None:
    """Write the model card of a run: data, limits, results of each class, calibration, licences, how to repeat it.

    Example: python -m tl_research card outputs/2026-01-31/12-00-00-0
    """
    from tl_research.reports.card import write_card

    if output and not output.expanduser().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    target = output.expanduser() if output else None
    if is_zip(run):
        opened, target = open_run(run), target or run.expanduser().with_name(f"{run.stem}-model_card.md")
    else:
        opened = Run.open(run)  # it may have a card and no model yet
    show(write_card(opened, target))
