"""TensorFlow's process-wide state: its import, threads, determinism and seeds."""

from __future__ import annotations

import gc
import logging
import sys
import warnings

from tl_research.errors import InputError
from tl_research.system.hardware import cores
from tl_research.system.process import gc_paused, suppress_stderr


def import_backend() -> None:
    """Import TensorFlow and nothing else: no device is touched and no thread is started."""
    import tensorflow  # noqa: F401


def start_backend(threads: int | None = None, deterministic: bool = False) -> int:
    """Import TensorFlow and set the size of its thread pools; returns the number of threads in use.

    Raises:
        InputError: TensorFlow already runs in this process with other threads (in a notebook: restart the kernel).
    """
    first = "tensorflow" not in sys.modules
    with suppress_stderr(), gc_paused():
        if first:
            gc.collect()
        import tensorflow as tf
        from threadpoolctl import threadpool_limits

        if first:
            gc.freeze()  # the modules stay; later collections need not traverse them
    # Keras 3.15 hands its variables to NumPy 2 without the copy keyword, also when it saves a model.
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning, r"keras\.")
    wanted = threads or cores()
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
    # BLAS counts cores when it is loaded, which may be before they are divided among processes.
    threadpool_limits(wanted)
    tf.get_logger().setLevel(logging.ERROR)  # each network that is traced is news to it, and to nobody else
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return wanted
