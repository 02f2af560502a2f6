"""Experiment: the root recipe. `run()` is the whole flow, from a source of images to a run directory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tl_research import describe, evaluation, runtime
from tl_research.backbone import Backbone
from tl_research.callbacks import Callback
from tl_research.classifier import BatchNorm
from tl_research.data.datamodule import DataModule
from tl_research.data.file_index import FileIndex
from tl_research.data.sources import Source
from tl_research.engines import EngineName
from tl_research.errors import InputError
from tl_research.features import Features, FeatureTable
from tl_research.fitting import Fitting
from tl_research.head import KNN, Head, Linear, Probe
from tl_research.optimizer import LBFGS, GradientOptimizer, Optimizer
from tl_research.passes import PLAIN
from tl_research.recipe import Positive, Seed, recipe
from tl_research.run import Run, versions
from tl_research.trainer import Trainer
from tl_research.transfer import Stage

if TYPE_CHECKING:
    import keras

Monitor = Literal[
    "val_accuracy", "val_loss", "val_macro_f1", "val_auroc", "test_accuracy", "test_loss", "test_macro_f1", "test_auroc"
]


@recipe
class Experiment:
    """Everything one run needs to know. The fields are the schema of the configuration: there are no other keys."""

    backbone: Backbone
    head: Head
    data: Source
    optimizer: Optimizer
    transfer: dict[str, Stage]
    trainer: Trainer
    callbacks: dict[str, Callback | None]
    seed: Seed = 0
    deterministic: bool = False
    monitor: Monitor = "val_accuracy"
    bn: BatchNorm = "frozen"
    threads: Positive | None = None
    engine: EngineName = "auto"
    features: Features = Field(default_factory=Features)
    shard: str | None = None
    directory: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if not self.transfer:
            raise ValueError("transfer: give at least one stage")
        for name, stage in self.transfer.items():
            optimizer = stage.optimizer_for(self.optimizer)
            at_once = not stage.trains_backbone and (isinstance(self.head, Probe) or isinstance(optimizer, LBFGS))
            solvable = isinstance(self.head, Probe) or (isinstance(self.head, Linear) and self.head.dropout == 0)
            if isinstance(optimizer, LBFGS) and not solvable:
                raise ValueError(
                    f"optimizer=lbfgs solves linear heads without dropout, and transfer.{name} would train another; "
                    f"add optimizer=adam, or use head=linear head.dropout=0"
                )
            if isinstance(self.head, KNN) and stage.trains_backbone:
                raise ValueError(
                    f"head=knn does not learn, and transfer.{name} would train through it; add transfer=frozen"
                )
            if at_once and not self.data.augment.changes_nothing and self.features.views is None:
                raise ValueError(
                    f"data.augment makes images that transfer.{name} would never see, for its head is solved on "
                    f"features; add features.views=4 (versions of each image), or optimizer=adam head=linear"
                )
        if isinstance(self.head, Probe) and next(iter(self.transfer.values())).trains_backbone:
            raise ValueError(
                "the head is made from features, and the first stage of transfer has none; add head=linear"
            )
        for key in ("views", "test_views"):
            if getattr(self.features, key) and self.data.augment.changes_nothing:
                raise ValueError(f"features.{key}: all views would be equal; add data/augment=light, or null")
        if self.shard and not (re.fullmatch(r"\d+/\d+", self.shard) and self.part[0] < self.part[1]):
            raise ValueError(f"shard={self.shard}: give a part and the number of parts, such as 0/4, 1/4, 2/4, 3/4")
        return self

    @property
    def start(self) -> Backbone:
        """The backbone the run starts from: with random weights if a stage asks for them."""
        random = any(stage.random_weights for stage in self.transfer.values())
        return replace(self.backbone, weights=None) if random else self.backbone

    @property
    def part(self) -> tuple[int, int]:
        """`shard` as numbers: which part of how many."""
        number, _, count = (self.shard or "0/1").partition("/")
        return int(number), int(count)

    def preflight(self) -> None:
        """Raises `InputError` when images or weights are known not to be there. Imports no TensorFlow."""
        self.data.preflight()
        self.start.preflight()

    def run(self, directory: str | Path | None = None) -> Run:
        """Trains, evaluates and records; returns the run.

        Args:
            directory: the run directory, created if need be; default `self.directory`, else a new one under `outputs/`.

        Raises:
            InputError: what was asked for cannot be done, in one line. The run's status says so, too.
        """
        if self.shard:
            raise InputError(f"shard={self.shard} is for `python -m tl_research extract`; training needs all images")
        with self._claimed(directory) as run:
            self._run(run)
        return run

    def extract(self, directory: str | Path | None = None) -> Run:
        """Has the store hold the features of all images, or of those of one `shard`, and trains nothing.

        Raises:
            InputError: there is no store, or what `run` raises for data and weights.
        """
        if self.features.store is None:
            raise InputError("features.store=null: there is nowhere to put features; give a folder")
        with self._claimed(directory) as run:
            data, threads = self._begin(run, lambda index: self.data.load_part(self.part, index))
            with run.phase("build"):
                table = self._table(self.start.build(), data, threads)
            with run.phase("features"):
                table.fill(np.arange(len(data)), (PLAIN, *range(self.features.views or 0)))
            describe.features(table.computed, table.hit)
            self._record_features(run, table)
            run.write_json("metrics.json", run.metrics | versions())
        return run

    @contextmanager
    def _claimed(self, directory: str | Path | None) -> Iterator[Run]:
        chosen = directory or self.directory or time.strftime("outputs/%Y-%m-%d/%H-%M-%S")
        run = Run.claim(Path(chosen).expanduser().absolute())
        began = time.time()
        with _status_kept(run):
            run.write_config(self.config)
            self.preflight()
            yield run
            self.features.prune(since=began)

    def _begin(self, run: Run, load: Callable[[FileIndex], DataModule]) -> tuple[DataModule, int]:
        """TensorFlow with its threads, and the images."""
        with run.phase("start"):
            threads = runtime.start(self.threads, self.deterministic)
        run.metrics |= {"seed": self.seed, "threads": threads, "deterministic": self.deterministic}
        with run.phase("data"):
            data = load(self.features.file_index())
        describe.data(data)
        run.write_json("classes.json", list(data.class_names))
        if data.quarantined:
            run.write_csv("set_aside.csv", ["path", "reason"], [[bad.path, bad.reason] for bad in data.quarantined])
        return data, threads

    def _run(self, run: Run) -> None:
        data, threads = self._begin(run, self.data.load)
        fitting = self._build(run, data, threads)
        stages = list(self.transfer.items())
        for number, (name, stage) in enumerate(stages, 1):
            optimizer = stage.optimizer_for(self.optimizer)
            assert isinstance(optimizer, LBFGS | GradientOptimizer)
            fitting.fit_stage(name, stage, optimizer, last=number == len(stages))
        fitting.finish()
        run.metrics["num_parameters"] = fitting.classifier.count_params()
        with run.phase("evaluate"):
            logits = evaluation.judge(run, fitting, self.features.test_views)
        self._record_features(run, fitting.features)
        with run.phase("save"):
            run.write_model(fitting.classifier)
        evaluation.show(run, fitting, self.config, logits)
        run.metrics |= versions()
        run.write_json("metrics.json", run.metrics)  # last: a run with metrics is a run that is whole
        describe.results(run.metrics, run.directory)

    def _build(self, run: Run, data: DataModule, threads: int) -> Fitting:
        import keras

        with run.phase("build"):
            backbone = self.start.build()
            keras.utils.set_random_seed(self.seed)
            width, num_classes = backbone.output_shape[-1], len(data.class_names)
            head = None if isinstance(self.head, Probe) else self.head.build(width, num_classes)
            features = self._table(backbone, data, threads)
        describe.model(self.backbone.name, backbone, head)
        run.metrics |= {f"num_{split}": len(data.indices(split)) for split in ("train", "val", "test")}
        run.metrics |= {"num_classes": len(data.class_names), "num_quarantined": len(data.quarantined)}
        return Fitting(
            run=run,
            data=data,
            backbone=backbone,
            head=head,
            recipe=self.head,
            features=features,
            trainer=self.trainer,
            callbacks={name: callback for name, callback in self.callbacks.items() if callback},
            batch_norm=self.bn,
            seed=self.seed,
            threads=threads,
        )

    def _table(self, backbone: keras.Model, data: DataModule, threads: int) -> FeatureTable:
        note = {"backbone": self.backbone.name, "weights": str(self.start.weights)}
        return FeatureTable(backbone, data, self.features, self.engine, threads, note)

    @staticmethod
    def _record_features(run: Run, table: FeatureTable) -> None:
        run.metrics |= {"features_computed": table.computed, "features_hit": table.hit}


@contextmanager
def _status_kept(run: Run) -> Iterator[None]:
    """Whatever ends the run, `status.json` tells."""
    try:
        yield
    except InputError as error:
        run.set_status("failed", str(error))
        raise
    except KeyboardInterrupt:
        run.set_status("interrupted", "interrupted by the user or the system")
        raise
    except BaseException as error:
        if "KeyboardInterrupt" in str(error):  # it struck in a function that TensorFlow calls, which wraps it
            run.set_status("interrupted", "interrupted by the user or the system")
            raise KeyboardInterrupt from error
        run.set_status("failed", f"{type(error).__name__}: {error}".strip()[:500])
        raise
    run.set_status("done")
