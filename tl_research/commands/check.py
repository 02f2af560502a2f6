"""`check`: what is wrong with a data set, before anything is learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import output_folder
from tl_research.errors import InputError


def check_command(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; default: outputs/check/...")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Exit with status 1 where images leak between splits or labels conflict")
    ] = False,
) -> None:
    """Check images before anything is learned from them: duplicates, doubtful labels, shortcuts. Nothing is trained.

    Example: python -m tl_research check data=folder data.root=PHOTOS
    """
    from tl_research import compose

    if several := {"-m", "--multirun"} & set(context.args):
        raise InputError(f"{several.pop()}: check looks at one data set; leave it out, and give single values")
    experiment = compose(context.args)
    for key in ("resume", "shard"):
        if value := getattr(experiment, key):
            raise InputError(f"{key}={value}: check looks at the images of a whole run; leave it out")
    folder = output_folder(output, "check")

    from tl_research.experiment.full_check import check_experiment
    from tl_research.reports.check_page import show_check, write_check

    findings = check_experiment(experiment)
    write_check(findings, folder, pictures=experiment.report.thumbnails)
    show_check(findings, folder)
    if strict and (findings.leaks or findings.conflicts):
        raise typer.Exit(1)
