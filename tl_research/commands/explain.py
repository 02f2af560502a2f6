"""`explain`: which parts of images speak for their class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import RunArgument, folder_beside, open_run
from tl_research.errors import InputError
from tl_research.system.console import show, show_error


def explain_command(
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES...]", help="Files or folders; default: the run's worst mistakes and least sure"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for pictures and numbers; default: RUN/explain")
    ] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="The class to explain; default: the answer")] = None,
    method: Annotated[str, typer.Option(help="map (exact for the default head, else Grad-CAM) or occlusion")] = "map",
) -> None:
    """Show which parts of images speak for their class: a picture and an array each, and a table of the answers.

    Example: python -m tl_research explain outputs/2026-01-31/12-00-00-0 PHOTOS
    """
    from tl_research.backend.start import start_backend
    from tl_research.evaluation.explain import Explainer
    from tl_research.evaluation.predict import images_in
    from tl_research.reports.explanations import doubtful_images, write_explanations

    opened = open_run(run)
    if method not in ("map", "occlusion"):
        raise InputError(f"--method {method}: give map or occlusion")
    paths = images_in(images) if images else doubtful_images(opened)
    start_backend()
    explainer = Explainer(opened, class_name, method)
    folder = output.expanduser() if output else folder_beside(run, "explain")
    page, failed = write_explanations(explainer.explain(paths), len(paths), folder, pictures=opened.shows_pictures)
    show(page)
    if failed:
        show_error(f"{failed} image(s) cannot be explained; the table says why")
        raise typer.Exit(1)
