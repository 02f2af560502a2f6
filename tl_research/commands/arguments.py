"""What several commands take."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Annotated

import typer

from tl_research.data.kaggle.archive import BY_HAND, unpack
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.runs.status import STATUS
from tl_research.system.console import show_error

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a command that also takes overrides."""

RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The run directory, such as outputs/2026-01-31/12-00-00-0, or a zip of it"),
]


def open_run(path: Path) -> Run:
    """Open a run that has a model, or a zip of one; warn on standard error if it is not done.

    A zip is unpacked to a temporary folder, which is removed with the `Run`, or at the end of the process.

    Raises:
        InputError: there is no run, it has no model, or the zip cannot be trusted.
    """
    path = path.expanduser()
    run = _open_zip(path) if is_zip(path) else Run.open(path)
    try:
        run.class_names()
        run.model_file()
    except InputError as error:
        message = str(error).partition(": python train.py")[0] if is_zip(path) else str(error)
        raise InputError(message.replace(str(run.directory), str(path))) from None
    state = run.status["state"]
    if state != "done":
        show_error(f"{path}: the run's status is '{state}'")
    return run


def is_zip(path: Path) -> bool:
    """Recognize a zipped run by its name."""
    return path.suffix.lower() == ".zip" and path.is_file()


def folder_beside(path: Path, *names: str) -> Path:
    """Return where a run's results go by default: into its directory, for a zip into one of its name beside it."""
    return (path.with_suffix("") if is_zip(path) else path).expanduser().joinpath(*names)


def _open_zip(path: Path) -> Run:
    folder = tempfile.mkdtemp(prefix="tl_research-")
    try:
        found = list(unpack(path, Path(folder) / "run").rglob(STATUS))
        outermost = [file.parent for file in found if len(file.parts) == min(len(other.parts) for other in found)]
        if len(outermost) != 1:
            raise InputError(f"{path}: holds {len(outermost) or 'no'} runs (directories with a {STATUS}), not one")
        run = Run.open(outermost[0])
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, InputError):
            raise
        message = str(error).replace(BY_HAND, "If you trust it, unpack it yourself and give the folder")
        raise InputError(message.replace("data.cache=", "TMPDIR=")) from None
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run


def output_folder(output: Path | None, command: str) -> Path:
    """Return the folder to write to, by default a new one below `outputs/COMMAND/`; it need not exist. Raises
    `InputError` if it cannot be created."""
    folder = (output or Path(time.strftime(f"outputs/{command}/%Y-%m-%d_%H-%M-%S"))).expanduser()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written ({existing}: {error.strerror})") from None
    return folder
