"""Keep names stable: those used by `_target_` in configurations, wherever their classes are defined, and former names
of modules and classes, which warn and keep working in old runs, users' YAML and users' code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
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
"""Where each class is defined; the module is imported on first access."""


def __getattr__(name: str) -> Any:
    if name not in TARGETS:
        raise AttributeError(f"module 'tl_research.targets' has no attribute '{name}'")
    module, _, attribute = TARGETS[name].rpartition(".")
    return getattr(import_module(module), attribute)


OLD_MODULES = {
    "at_once": "training.closed_form",
    "atomic": "system.files",
    "backbone": "models.backbone",
    "blocks": "models.blocks",
    "callbacks": "training.callbacks",
    "checkpoint": "runs.checkpoint",
    "claims": "features.row_claims",
    "classifier": "models.classifier",
    "cluster": "backend.workers",
    "configure": "config",
    "configure.check": "config.preflight",
    "configure.composition": "config.compose",
    "configure.door": "config.entry",
    "configure.explain": "config.compose_errors",
    "configure.grid": "config.grid",
    "configure.jobs": "config.jobs",
    "configure.names": "config.suggestions",
    "configure.places": "config.output_dirs",
    "configure.quote": "config.override_quoting",
    "configure.ranges": "config.constraints",
    "configure.resume": "config.resume",
    "configure.search": "config.search_preflight",
    "configure.space": "config.search_space",
    "configure.worker": "config.secondary_worker",
    "data.archive": "data.kaggle.archive",
    "data.augment": "data.augment.augment",
    "data.check": "data.inspection",
    "data.demo": "data.synthetic.demo",
    "data.food": "data.synthetic.food",
    "data.kaggle": "data.kaggle.kaggle",
    "data.kaggle_client": "data.kaggle.kaggle_client",
    "data.mixing": "data.augment.mixing",
    "data.paint": "data.synthetic.paint",
    "data.rand_augment": "data.augment.rand_augment",
    "data.sauce": "data.synthetic.sauce",
    "data.scenes": "data.synthetic.scenes",
    "data.stream": "data.loader",
    "data.tree": "data.class_folders",
    "distribution": "backend.strategy",
    "engines": "features.engines",
    "evaluation": "evaluation.evaluate",
    "experiment": "experiment.experiment",
    "feature_store": "features.store",
    "features": "features.table",
    "feeds": "training.inputs",
    "figures": "reports.figures",
    "filling": "features.shared_fill",
    "fitting": "training.stage_runner",
    "folding": "backend.bn_folding",
    "fused": "backend.fused_adam",
    "head": "models.head",
    "head_inputs": "features.head_inputs",
    "identity": "runs.identity",
    "leaderboard": "reports.leaderboard",
    "live": "sweeps.live_table",
    "lock": "system.locks",
    "lr_find": "training.lr_range_test",
    "metrics": "metrics.classification",
    "moved": "training.trained_weights",
    "nearest": "models.nearest",
    "network": "system.download",
    "networks": "models.networks",
    "optimizer": "training.optimizer",
    "passes": "features.extraction",
    "pool": "sweeps.process_pool",
    "precision": "backend.precision",
    "predict": "evaluation.predict",
    "preload": "sweeps.preload",
    "probe": "training.logistic_regression",
    "progress": "system.progress",
    "report": "reports.html_report",
    "run": "runs.run",
    "runtime": "backend.start",
    "schedule": "training.schedule",
    "step": "backend.train_step",
    "stock": "features.store_admin",
    "supply": "training.stage_inputs",
    "trainer": "training.loop",
    "transfer": "training.stage",
    "trial": "training.pruning",
    "weights": "models.weights",
}
"""Modules below `tl_research` by their name in version 0.1, and the module that defines their public names now.
Modules inside a moved package, such as `weights`, moved with it."""

OLD_NAMES = {
    "blocks.blocks": "models.blocks.find_blocks",
    "blocks.split": "models.blocks.split_backbone",
    "callbacks.State": "training.callbacks.CallbackState",
    "classifier.Row": "models.classifier.TrainableRow",
    "classifier.assemble": "models.classifier.build_classifier",
    "classifier.table": "models.classifier.trainable_table",
    "classifier.thaw": "models.classifier.set_trainable",
    "data.datamodule.assemble": "data.datamodule.split_dataset",
    "data.datamodule.unsplit": "data.datamodule.unsplit_dataset",
    "data.mixing.mix": "data.augment.mixing.mix_batch",
    "data.stream.KEPT_BYTES": "data.loader.CACHE_BYTES",
    "data.stream.Kept": "data.loader.PixelCache",
    "data.stream.Loaded": "data.loader.Prefetcher",
    "data.tree.Tree": "data.class_folders.ClassFolders",
    "data.tree.read_tree": "data.class_folders.read_class_folders",
    "distribution.LostError": "backend.strategy.WorkerLostError",
    "engines.about": "features.engines.describe_engine",
    "engines.build": "features.engines.build_engine",
    "engines.choose": "features.engines.choose_engine",
    "errors.LackingError": "errors.MissingResourceError",
    "features.UnfitError": "features.table.DtypeRangeError",
    "fitting.Fitting": "training.stage_runner.StageRunner",
    "head.Probe": "models.head.DirectHead",
    "metrics.evaluate": "metrics.classification.classification_metrics",
    "metrics.quick": "metrics.classification.accuracy_and_loss",
    "networks.efficientnet_lite.Stage": "models.networks.efficientnet_lite.BlockGroup",
    "passes.Items": "features.extraction.ImageViews",
    "passes.PLAIN": "features.extraction.ORIGINAL",
    "passes.extract": "features.extraction.extract_features",
    "passes.passes": "features.extraction.run_batches",
    "predict.answer": "evaluation.predict.predict_logits",
    "predict.evaluate": "evaluation.predict.evaluate_on",
    "predict.predict": "evaluation.predict.predict_images",
    "probe.softmax": "metrics.probabilities.softmax",
    "run.State": "runs.run.RunState",
    "run.repeating": "runs.run.without_fresh",
    "runtime.start": "backend.start.start_backend",
    "schedule.factor": "training.schedule.rate_factor",
    "step.Step": "backend.train_step.TrainStep",
    "stock.Stock": "features.store_admin.StoreEntry",
    "stock.prune": "features.store_admin.prune_store",
    "stock.stocks": "features.store_admin.list_entries",
    "trainer.Fit": "training.loop.TrainLoop",
    "trainer.Row": "training.loop.EpochRow",
    "trainer.Trainer": "training.loop.TrainOptions",
    "weights.keras_fetches": "models.weights.keras_download",
}
"""Names of version 0.1 that were renamed, or moved to another module than their neighbours."""

STABLE = {"networks.tiny"}
"""Old modules that conf/ and old runs use as values (`backbone.build`); they raise no warning."""


def current_name(old: str) -> str | None:
    """Translate a dotted name of version 0.1 below `tl_research`, such as `head.Linear`; None if it is unknown."""
    module, _, name = old.rpartition(".")
    if old in OLD_NAMES:
        return OLD_NAMES[old]
    new = _current_module(module)
    return f"{new}.{name}" if new else None


def _current_module(old: str) -> str | None:
    if old in OLD_MODULES:
        return OLD_MODULES[old]
    package, _, rest = old.partition(".")
    return f"{OLD_MODULES[package]}.{rest}" if rest and package in ("weights", "networks") else None


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
            warnings.warn(f"{module}.{name} is called {home}.{attribute} now", FutureWarning, stacklevel=3)
        return value

    return find


class OldModules(MetaPathFinder, Loader):
    """Import modules by their names in version 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a moved module, None for all others."""
        old = fullname.removeprefix("tl_research.")
        if old == fullname or _current_module(old) is None:
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
