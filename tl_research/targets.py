"""Keep names stable: those used by `_target_` in configurations, wherever their classes are defined, and former names
of modules and classes, which warn and keep working in old runs, users' YAML and users' code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TARGETS = {
    "Experiment": "tl_research.experiment.experiment.Experiment",
    "Application": "tl_research.models.backbone.Application",
    "Auto": "tl_research.models.combined.Auto",
    "Combined": "tl_research.models.combined.Combined",
    "Custom": "tl_research.models.custom_backbone.Custom",
    "Lite": "tl_research.models.backbone.Lite",
    "Saved": "tl_research.models.backbone.Saved",
    "VisionTransformer": "tl_research.models.transformer_backbone.VisionTransformer",
    "AutoHead": "tl_research.models.head.AutoHead",
    "KNN": "tl_research.models.head.KNN",
    "Linear": "tl_research.models.head.Linear",
    "MLP": "tl_research.models.head.MLP",
    "Prototype": "tl_research.models.head.Prototype",
    "Folder": "tl_research.data.sources.Folder",
    "HotDogDemo": "tl_research.data.sources.HotDogDemo",
    "HotDogSauce": "tl_research.data.sources.HotDogSauce",
    "Arrays": "tl_research.data.array_source.Arrays",
    "Table": "tl_research.data.table_source.Table",
    "Kaggle": "tl_research.data.sources.Kaggle",
    "Augment": "tl_research.data.augment.augment.Augment",
    "Adam": "tl_research.training.optimizer.Adam",
    "AdamW": "tl_research.training.optimizer.AdamW",
    "LBFGS": "tl_research.training.optimizer.LBFGS",
    "RMSprop": "tl_research.training.optimizer.RMSprop",
    "SGD": "tl_research.training.optimizer.SGD",
    "Stage": "tl_research.training.stage.Stage",
    "Report": "tl_research.experiment.experiment.ReportOptions",
    "Trainer": "tl_research.training.options.TrainOptions",
    "Features": "tl_research.features.table.Features",
    "BestWeights": "tl_research.training.callbacks.BestWeights",
    "EarlyStopping": "tl_research.training.callbacks.EarlyStopping",
    "MLflow": "tl_research.reports.mlflow_tracker.MLflow",
    "TensorBoard": "tl_research.reports.tensorboard.TensorBoard",
}
"""Where each class is defined; the module is imported on first access."""


def __getattr__(name: str) -> Any:
    if name not in TARGETS:
        raise AttributeError(f"module 'tl_research.targets' has no attribute '{name}'")
    module, _, attribute = TARGETS[name].rpartition(".")
    return getattr(import_module(module), attribute)


STABLE = {"networks.tiny"}
"""Old modules that conf/ and old runs use as values (`backbone.build`); they raise no warning."""


@cache
def _table() -> dict[str, str]:
    lines = Path(__file__).with_name("old_names.txt").read_text().splitlines()
    return dict(line.split() for line in lines if not line.startswith("#"))


def current_name(old: str) -> str | None:
    """Translate a dotted name of version 0.1 below `tl_research`, such as `head.Linear`; None if it is unknown."""
    if old in _table():
        return _table()[old]
    module, _, name = old.rpartition(".")
    new = _current_module(module)
    return f"{new}.{name}" if new else None


def _current_module(old: str) -> str | None:
    package, _, rest = old.partition(".")
    if old not in _table() and rest and package in ("weights", "networks"):
        return f"{_table()[package]}.{rest}"
    return _table().get(old)


@cache  # Python itself forgets that it has warned where somebody has changed filters meanwhile
def _warn_once(message: str) -> None:
    warnings.warn(message, FutureWarning, stacklevel=4)


def old_names(module: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module that had other public names in version 0.1; each use warns.

    Raises:
        AttributeError: the module has and had no such name.
    """
    old = module.removeprefix("tl_research.")

    def find(name: str) -> Any:
        new = current_name(f"{old}.{name}")
        if new is None or name.startswith("__"):
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        home, _, attribute = f"tl_research.{new}".rpartition(".")
        value = getattr(import_module(home), attribute)
        if old not in STABLE:
            _warn_once(f"{module}.{name} is called {home}.{attribute} now")
        return value

    return find


class OldModules(MetaPathFinder, Loader):
    """Import modules by their names in version 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a moved module, None for all others."""
        old = fullname.removeprefix("tl_research.")
        new = _current_module(old) if old != fullname else None
        if new is None or find_spec(f"tl_research.{new}") is None:
            return None
        return ModuleSpec(fullname, self, is_package=old in ("weights", "networks", "configure"))

    def exec_module(self, module: ModuleType) -> None:
        """Give an old module the public names of its successor."""
        module.__getattr__ = old_names(module.__name__)  # type: ignore[method-assign]


def install() -> None:
    """Make old modules importable, and old names of `errors`, which has not moved."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())
    import_module("tl_research.errors").__getattr__ = old_names("tl_research.errors")  # type: ignore[method-assign]
