"""TensorFlow's process-wide state: started once, quietly, with the threads and determinism that a run records."""

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

from tl_research.errors import InputError


@contextlib.contextmanager
def quietly() -> Iterator[None]:
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
def uncollected() -> Iterator[None]:
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
def import_path() -> Iterator[None]:
    """Python processes that are started meanwhile can import us, installed or not, from whatever folder."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[1])
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


def leave(status: int) -> NoReturn:
    """Ends the process at once. Python would first take TensorFlow apart, object by object, for a second; all files of
    ours are closed by now."""
    atexit._run_exitfuncs()  # temporary files of TensorFlow's and of the sweep's server; logs are flushed
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(status)


CORES = "TL_CORES"
"""The environment variable in which a cluster's launcher says how many cores a job was given. It is no key: on how many
a job runs does not make it another one."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(threads: int | None = None, deterministic: bool = False) -> int:
    """Imports TensorFlow and sets its thread pools; returns the number of threads in force.

    Raises:
        InputError: TensorFlow already runs in this process with other threads (in a notebook: restart the kernel).
    """
    first = "tensorflow" not in sys.modules
    with quietly(), uncollected():
        if first:
            gc.collect()
        import tensorflow as tf
        from threadpoolctl import threadpool_limits

        if first:
            gc.freeze()  # what the import has made stays; later collections need not look at it
    wanted = threads or int(os.environ.get(CORES, "0")) or cores()
    if tf.config.threading.get_intra_op_parallelism_threads() != wanted:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(wanted)
            tf.config.threading.set_inter_op_parallelism_threads(wanted)
        except RuntimeError:
            running = tf.config.threading.get_intra_op_parallelism_threads()
            if threads:
                raise InputError(
                    f"threads={threads}: TensorFlow already runs in this process with {running or 'its own choice of'} "
                    f"threads; start a new process (in a notebook: restart the kernel)"
                ) from None
            wanted = running or wanted
    threadpool_limits(wanted)  # BLAS has counted cores when it was loaded, which may have been before they were divided
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return wanted


def fresh(seed: int) -> None:
    """Forgets the models and names that Keras has given in this process, and seeds: what is built next does not depend
    on what was built before."""
    import keras
    import tensorflow as tf

    if not tf.distribute.has_strategy():  # whose scope would be forgotten, too; `distribution.devices` did this before
        keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
