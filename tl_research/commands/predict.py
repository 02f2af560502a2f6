"""`predict`: classes of images, by a finished run."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import RunArgument, open_run
from tl_research.errors import InputError
from tl_research.evaluation.answer_file import AnswerFile, AnswerPrinter, Format, choose_format
from tl_research.evaluation.answers import AnswerOptions, Answers, begun_with
from tl_research.features.engines import BATCH
from tl_research.system.console import show_error


def predict_command(
    run: RunArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders, patterns such as 'a/**/*.jpg'; - is a list on stdin"),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file; default: print")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Default: by the suffix of --output, else csv")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Add the K most probable classes and their probabilities")] = 0,
    threshold: Annotated[
        float | None, typer.Option(help="Abstain where the largest p_ is below this: an empty prediction")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Add sets of classes that hold the true one with this frequency, such as 0.9")
    ] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Calibrate the p_ by the run's temperature")] = False,
    continues: Annotated[bool, typer.Option("--continue", help="With --output: take up an interrupted one")] = False,
) -> None:
    """Predict the class of each image, with probabilities. An unreadable file gives a row with the reason, and the exit
    status 1.

    Example: python -m tl_research predict outputs/2026-01-31/12-00-00-0 PHOTOS -o answers.csv
    """
    from tl_research.evaluation.predict import each_logits, images_in

    opened, options = open_run(run), AnswerOptions(top_k, threshold, coverage, calibrated)
    answers, chosen = Answers(opened, options), choose_format(format_, output)
    if output is None and continues:
        raise InputError("--continue: give the file to continue with --output")
    if output is None:
        table = AnswerPrinter(chosen, answers.columns)
    else:
        begun = begun_with(opened, chosen, options)
        table = AnswerFile(output.expanduser(), chosen, answers.columns, begun, continues=continues)
    with closing(table):
        paths = table.missing(images_in(images))
        for note in answers.notes:
            show_error(note)
        rows = map(answers.row, paths, each_logits(opened, paths)) if paths else iter(())
        try:
            while batch := list(islice(rows, BATCH)):
                table.write(batch)
        except KeyboardInterrupt:
            if output:
                show_error("the same command with --continue goes on from here")
            raise
        table.finish()
    if table.failed:
        show_error(f"{table.failed} image(s) have no answer; the column error says why")
        raise typer.Exit(1)
