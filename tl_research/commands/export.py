"""`export`: a finished run's model for use without this package."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_research.commands.arguments import RunArgument, folder_beside, open_run
from tl_research.errors import InputError

Format = Literal["keras", "savedmodel", "onnx", "openvino", "litert"]


def export_command(
    run: RunArgument,
    to: Annotated[Format, typer.Option("--to", help="Format of the model")],
    int8: Annotated[bool, typer.Option("--int8", help="Quantize to 8 bits (openvino, litert)")] = False,
    max_drop: Annotated[
        float, typer.Option(help="With --int8: largest loss of accuracy, on training and validation images")
    ] = 0.01,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write to; default: RUN/export/FORMAT, or FORMAT-int8"),
    ] = None,
) -> None:
    """Export a run's model: uint8 RGB pixels in, calibrated probabilities out, class names inside. It is checked
    against the run in its own runtime, and `use.py` beside it shows how to use it.

    Example: python -m tl_research export outputs/2026-01-31/12-00-00-0 --to onnx
    """
    from tl_research.config.resume import source_of
    from tl_research.serving.export import INT8_FORMATS, export_run
    from tl_research.serving.summary import show_export

    if int8 and to not in INT8_FORMATS:
        raise InputError(f"--int8: --to {to} has no 8-bit form here; give --to {' or '.join(INT8_FORMATS)}")
    if not 0 <= max_drop <= 1:
        raise InputError(f"--max-drop {max_drop}: should be from 0 to 1")
    if output is not None and not output.expanduser().absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    opened = open_run(run)
    target = output.expanduser() if output else folder_beside(run, "export", f"{to}-int8" if int8 else to)
    if not int8:
        show_export(export_run(opened, to, target.absolute()))
        return
    source = source_of(opened)
    source.preflight()
    data = source.load()
    with tempfile.TemporaryDirectory() as folder:
        float32 = export_run(opened, to, Path(folder, to))
    show_export(export_run(opened, to, target.absolute(), data, max_drop), float32)
