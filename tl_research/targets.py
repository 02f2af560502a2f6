"""The names that configurations give to `_target_`. They stay as they are wherever their classes move, so that an old
run's config.yaml and a user's own YAML go on working."""

from __future__ import annotations

from importlib import import_module
from typing import Any

TARGETS = {
    "tl_research.experiment": ("Experiment",),
    "tl_research.backbone": ("Application", "Custom", "Lite", "Saved"),
    "tl_research.head": ("KNN", "MLP", "Linear", "Prototype"),
    "tl_research.data.sources": ("Folder", "HotDogDemo", "HotDogSauce", "Kaggle"),
    "tl_research.data.augment": ("Augment",),
    "tl_research.optimizer": ("LBFGS", "SGD", "Adam", "AdamW", "RMSprop"),
    "tl_research.transfer": ("Stage",),
    "tl_research.trainer": ("Trainer",),
    "tl_research.features": ("Features",),
    "tl_research.callbacks": ("BestWeights", "EarlyStopping", "TensorBoard"),
}
"""The classes by the module that defines them, which is imported when one of them is asked for."""


def __getattr__(name: str) -> Any:
    for module, names in TARGETS.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'tl_research.targets' has no attribute '{name}'")
