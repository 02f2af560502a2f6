"""The names that configurations give to `_target_`. They stay as they are wherever their classes move, so that an old
run's config.yaml and a user's own YAML go on working."""

from __future__ import annotations

from importlib import import_module
from typing import Any

TARGETS = {
    "Experiment": "tl_research.experiment.experiment.Experiment",
    "Application": "tl_research.models.backbone.Application",
    "Custom": "tl_research.models.backbone.Custom",
    "Lite": "tl_research.models.backbone.Lite",
    "Saved": "tl_research.models.backbone.Saved",
    "KNN": "tl_research.models.head.KNN",
    "Linear": "tl_research.models.head.Linear",
    "MLP": "tl_research.models.head.MLP",
    "Prototype": "tl_research.models.head.Prototype",
    "Folder": "tl_research.data.sources.Folder",
    "HotDogDemo": "tl_research.data.sources.HotDogDemo",
    "HotDogSauce": "tl_research.data.sources.HotDogSauce",
    "Kaggle": "tl_research.data.sources.Kaggle",
    "Augment": "tl_research.data.augment.augment.Augment",
    "Adam": "tl_research.training.optimizer.Adam",
    "AdamW": "tl_research.training.optimizer.AdamW",
    "LBFGS": "tl_research.training.optimizer.LBFGS",
    "RMSprop": "tl_research.training.optimizer.RMSprop",
    "SGD": "tl_research.training.optimizer.SGD",
    "Stage": "tl_research.training.stage.Stage",
    "Trainer": "tl_research.training.loop.TrainOptions",
    "Features": "tl_research.features.table.Features",
    "BestWeights": "tl_research.training.callbacks.BestWeights",
    "EarlyStopping": "tl_research.training.callbacks.EarlyStopping",
    "TensorBoard": "tl_research.training.callbacks.TensorBoard",
}
"""Where each class is defined; its module is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in TARGETS:
        raise AttributeError(f"module 'tl_research.targets' has no attribute '{name}'")
    module, _, attribute = TARGETS[name].rpartition(".")
    return getattr(import_module(module), attribute)
