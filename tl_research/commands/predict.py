"""`predict`: classes of images, by a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import RunArgument, open_run
from tl_research.errors import InputError


def predict_command(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the CSV here; default: print it")] = None,
) -> None:
    """Predict the class of each image, with probabilities, as CSV. An unreadable file gives a row with the reason.

    Example: python -m tl_research predict outputs/2026-01-31/12-00-00-0 PHOTOS -o answers.csv
    """
    from tl_research.backend.start import start_backend
    from tl_research.evaluation.predict import images_in, predict_images
    from tl_research.runs.run import as_csv
    from tl_research.system.files import write_atomically

    opened = open_run(run)
    if output is not None and not output.expanduser().absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    paths = images_in(path.expanduser() for path in images)
    start_backend()
    header, rows = predict_images(opened, paths)
    text = as_csv(header, rows)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output.expanduser(), text)
    if all(row[-1] for row in rows):
        raise typer.Exit(1)  # no image could be read; each row says why
