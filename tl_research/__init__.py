"""Transfer learning on a few hundred labelled images.

from tl_research import compose
run = compose(["backbone=resnet50", "transfer=finetune"]).run()
run.metrics["test_accuracy"]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tl_research.targets import install

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
