"""This process and those that it starts: what they print, what they can import, how they end."""

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
def suppress_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2 while TensorFlow is being imported: its C++ start-up lines come
    before any log level of its own is read. If the block raises, they are shown, for they may say why."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as restore:
        stderr = os.dup(2)
        restore.callback(os.close, stderr)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(stderr, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(stderr, 2)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses the garbage collector: while a million objects are made that all stay, it looks through them again and
    again, which is a quarter of TensorFlow's import and of building a network."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Python processes that are started meanwhile can import us, installed or not, from whatever folder."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def print_to(path: Path) -> None:
    """What this process prints from now on goes to the end of a file, with room for wide tables."""
    os.environ["COLUMNS"] = "160"
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def exit_now(status: int) -> NoReturn:
    """Ends the process at once. Python would first take TensorFlow apart, object by object, for a second; all files of
    ours are closed by now."""
    atexit._run_exitfuncs()  # temporary files of TensorFlow's and of the sweep's server; logs are flushed
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(status)
