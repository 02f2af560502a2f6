"""Import the heavy packages once, in the server from which a sweep's processes are forked. Nothing here may touch a
device or start a thread pool: neither survives a fork."""

from __future__ import annotations

import gc
import signal

from tl_research.backend.start import import_backend
from tl_research.system.process import gc_paused, suppress_stderr

# Ctrl-C reaches this process and its jobs, too: this one ends with the sweep's, which ends the jobs by SIGTERM.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

with suppress_stderr(), gc_paused():
    import keras  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import openvino  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model
    import sklearn.model_selection  # noqa: F401

    import_backend()
    from tensorboard.plugins.hparams import api  # noqa: F401

    import tl_research.experiment.experiment  # noqa: F401
gc.collect()
gc.freeze()
