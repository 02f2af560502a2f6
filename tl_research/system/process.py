"""This process and those that it starts: their output, import path and exit."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


@contextlib.contextmanager
def redirected(target: int, *descriptors: int) -> Iterator[None]:
    """Let file descriptors of this process write to another one within the block, C++ libraries included."""
    with contextlib.ExitStack() as restore:
        for descriptor in descriptors:
            saved = os.dup(descriptor)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, descriptor)
            os.dup2(target, descriptor)
        yield


@contextlib.contextmanager
def suppress_stderr() -> Iterator[None]:
    """Hold back file descriptor 2 while TensorFlow is imported: its C++ start-up lines precede any log level. If the
    block raises, they are shown, for they may give the reason."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as buffer:
        try:
            with redirected(buffer.fileno(), 2):
                yield
        except Exception:
            buffer.seek(0)
            os.write(2, buffer.read())
            raise


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector, which takes a quarter of the time of TensorFlow's import and of building a network:
    both create a million objects that stay, and it scans them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let Python processes started in the block import this package from any folder, installed or not."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def where_started(path: str) -> Path:
    """Take a relative path from the folder where the user started to work: the current one; for a kernel, which starts
    beside its notebook, that where Jupyter was started, if the notebook lies below it."""
    here = Path.cwd()
    if "ipykernel" in sys.modules:
        import psutil  # which ipykernel depends on

        with contextlib.suppress(psutil.Error):
            jupyter = Path(psutil.Process(os.getppid()).cwd())
            if jupyter in here.parents and jupyter != jupyter.parent:
                here = jupyter
    return here / Path(path).expanduser()


def print_to(path: Path) -> None:
    """Append the output of this process to a file from now on, with room for wide tables."""
    os.environ["COLUMNS"] = "160"
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def exit_now(status: int) -> NoReturn:
    """End the process at once. Python would first spend a second on destroying TensorFlow's objects; all files are
    closed by now."""
    atexit._run_exitfuncs()  # removes temporary files of TensorFlow and the sweep's server, flushes logs
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has gone
            stream.flush()
    os._exit(status)
