"""Transfer learning on a few hundred labelled images.

from tl_research import compose
run = compose(["backbone=resnet50", "transfer=finetune"]).run()
run.metrics["test_accuracy"]
"""

from __future__ import annotations

import os
import signal
import sys

# What must be known before anything heavy is imported, where this is one of our two commands.
_IS_COMMAND = sys.argv[:1] == ["-m"] or "".join(sys.argv[:1]).endswith("train.py")

if "win32" in sys.platform or os.name == "nt":
    _WINDOWS = "tl_research runs on Linux and macOS; on Windows install WSL 2 (wsl --install) and run it there"
    if _IS_COMMAND:
        sys.stderr.write(f"{_WINDOWS}\n")
        raise SystemExit(2)
    raise ImportError(_WINDOWS)

if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def _leave(*_: object) -> None:
        """End at once, without a traceback: nothing has begun until `run_reporting_errors` takes signals over."""
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)

from typing import TYPE_CHECKING, Any  # noqa: E402

from tl_research.targets import install  # noqa: E402

# Read by TensorFlow and Keras once, at their import, so they are set before any module of ours can import them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up lines are no news to anybody
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default on CPUs without AVX-512: twice the time
os.environ["KERAS_BACKEND"] = "tensorflow"

if TYPE_CHECKING:
    from tl_research.config.entry import compose
    from tl_research.data.array_source import from_arrays
    from tl_research.errors import InputError
    from tl_research.runs.run import Run

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "__version__", "compose", "from_arrays"]

_HOMES = {
    "compose": "tl_research.config.entry",
    "from_arrays": "tl_research.data.array_source",
    "InputError": "tl_research.errors",
    "Run": "tl_research.runs.run",
}


install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tl_research' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
