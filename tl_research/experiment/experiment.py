"""Experiment: the root recipe. `run()` is the whole flow, from a source of images to a run directory."""

from __future__ import annotations

import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tl_research.backend.start import start_backend
from tl_research.backend.strategy import WorkerLostError, open_strategy
from tl_research.data.datamodule import DataModule
from tl_research.data.file_index import FileIndex
from tl_research.data.sources import Source
from tl_research.data.summary import show_data
from tl_research.errors import DivergedError, InputError, LackingError
from tl_research.evaluation.evaluate import evaluate_run, show_results
from tl_research.experiment.summary import show_done_before, show_metrics
from tl_research.features.engines import EngineName
from tl_research.features.extraction import ORIGINAL
from tl_research.features.summary import show_features
from tl_research.features.table import Features, FeatureTable
from tl_research.models.backbone import Backbone
from tl_research.models.classifier import BatchNorm
from tl_research.models.head import KNN, DirectHead, Head, Linear
from tl_research.models.summary import show_model
from tl_research.recipe import Positive, Seed, recipe
from tl_research.runs.identity import identity
from tl_research.runs.run import Existing, Run, RunState, versions
from tl_research.training.callbacks import Callback
from tl_research.training.closed_form import needs_no_epochs
from tl_research.training.loop import TrainLoop, TrainOptions
from tl_research.training.optimizer import LBFGS, GradientOptimizer, Optimizer
from tl_research.training.pruning import PrunedError
from tl_research.training.stage import Stage
from tl_research.training.stage_runner import StageRunner

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

log = logging.getLogger(__name__)

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
    trainer: TrainOptions
    callbacks: dict[str, Callback | None]
    seed: Seed = 0
    deterministic: bool = False
    monitor: Monitor = "val_accuracy"
    bn: BatchNorm = "frozen"
    threads: Positive | None = None
    engine: EngineName = "auto"
    features: Features = Field(default_factory=Features)
    shard: str | None = None
    missing_weights: Literal["skip", "random"] = "skip"
    fresh: bool = False
    resume: str | None = None
    directory: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if not self.transfer:
            raise ValueError("transfer: give at least one stage")
        augment, seen = self.data.augment, any(stage.trains_backbone for stage in self.transfer.values())
        for name, stage in self.transfer.items():
            optimizer = stage.optimizer_for(self.optimizer)
            solvable = isinstance(self.head, DirectHead) or (isinstance(self.head, Linear) and self.head.dropout == 0)
            if isinstance(optimizer, LBFGS) and not solvable:
                raise ValueError(
                    f"optimizer=lbfgs solves linear heads without dropout, and transfer.{name} would train another; "
                    f"add optimizer=adam, or use head=linear head.dropout=0"
                )
            if isinstance(stage.optimizer, LBFGS) and stage.trains_backbone:
                raise ValueError(
                    f"transfer.{name}.optimizer: lbfgs solves heads, and this stage trains the backbone; use adam"
                )
            if isinstance(self.head, KNN) and stage.trains_backbone:
                raise ValueError(
                    f"head=knn does not learn, and transfer.{name} would train through it; add transfer=frozen"
                )
            no_epochs = needs_no_epochs(stage, self.head, optimizer)
            if no_epochs and not seen and not augment.changes_nothing and self.features.views is None:
                views = "" if augment.mixes else "features.views=4 (versions of each image), or "
                raise ValueError(
                    f"data.augment makes images that transfer.{name} would never see, for its head is solved on "
                    f"features; add {views}optimizer=adam head=linear"
                )
        if isinstance(self.head, DirectHead) and next(iter(self.transfer.values())).trains_backbone:
            raise ValueError(
                "the head is made from features, and the first stage of transfer has none; add head=linear"
            )
        if self.trainer.batch_size == "auto" and self.deterministic:
            raise ValueError(
                "trainer.batch_size=auto depends on a GPU's memory, and deterministic=true may not; give a number"
            )
        if self.trainer.batch_size == "auto" and self.trainer.distribution == "multi_worker":
            raise ValueError(
                "trainer.batch_size=auto asks one machine what fits; trainer.distribution=multi_worker wants a number"
            )
        if augment.mixes and self.features.views:
            raise ValueError(
                "features.views are of single images, and data.augment.mixup or cutmix would mix none of them; "
                "give features.views=null (a new version in each epoch), or data.augment.mixup=0 data.augment.cutmix=0"
            )
        if augment.mixes and self.trainer.batch_size == 1:
            raise ValueError(
                "trainer.batch_size=1 leaves data.augment.mixup or cutmix nothing to mix an image with; "
                "give a larger one, or data.augment.mixup=0 data.augment.cutmix=0"
            )
        for key in ("views", "test_views"):
            if getattr(self.features, key) and not augment.changes_images:
                raise ValueError(f"features.{key}: all views would be equal; add data/augment=light, or null")
        if self.shard and not (re.fullmatch(r"\d+/\d+", self.shard) and self.part[0] < self.part[1]):
            raise ValueError(f"shard={self.shard}: give a part and the number of parts, such as 0/4, 1/4, 2/4, 3/4")
        return self

    @property
    def start(self) -> Backbone:
        """The backbone the run starts from: with random weights if a stage asks for them."""
        random = any(stage.random_weights for stage in self.transfer.values())
        return replace(self.backbone, weights=None) if random or self.falls_back else self.backbone

    @cached_property
    def falls_back(self) -> bool:
        """Whether weights are random because those asked for are not there, and `missing_weights` allows it."""
        if self.missing_weights == "skip":
            return False
        try:
            self.backbone.preflight()
        except InputError:
            return True
        return False

    @property
    def part(self) -> tuple[int, int]:
        """`shard` as numbers: which part of how many."""
        number, _, count = (self.shard or "0/1").partition("/")
        return int(number), int(count)

    def preflight(self) -> None:
        """Raises `LackingError` when images or weights are known not to be there. Imports no TensorFlow."""
        for what, part in (("data", self.data), ("weights", self.start)):
            try:
                part.preflight()
            except InputError as error:
                raise LackingError(what, str(error)) from None

    def run(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Trains, evaluates and records; returns the run.

        Args:
            directory: the run directory, created if need be; default `self.directory`, else a new one under `outputs/`.
            existing: what if there is a run in it (see `Run.claim`). With `resume`, one that is done, of this very
                configuration, data, weights and code, is returned as it is, and one that is not goes on from its last
                checkpoint. `self.resume` asks for that, too.

        Raises:
            InputError: what was asked for cannot be done, in one line. The run's status says so, too.
        """
        if self.shard:
            raise InputError(f"shard={self.shard} is for `python -m tl_research extract`; training needs all images")
        with self._claimed(directory, "resume" if self.resume else existing) as run:
            data = self._load(run, self.data.load)
            if run.adopt_or_restart(identity(self.config, data, self.start.files())):
                show_done_before(run.metrics, run.directory)
            else:
                self._run(run, data)
        return run

    def extract(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Has the store hold the features of all images, or of those of one `shard`, and trains nothing.

        Raises:
            InputError: there is no store, or what `run` raises for data and weights.
        """
        if self.features.store is None:
            raise InputError("features.store=null: there is nowhere to put features; give a folder")
        # One that was done before is done again: rows are found, unless they have been pruned since.
        with self._claimed(directory, "replace" if existing == "resume" else existing) as run:
            data = self._load(run, lambda index: self.data.load_part(self.part, index))
            threads = self._begin(run, data)
            with run.phase("build"):
                table = self._table(self.start.build(), data, threads)
            with run.phase("features"):
                table.ensure_stored(np.arange(len(data)), (ORIGINAL, *range(self.features.views or 0)))
            show_features(table.computed, table.hit)
            self._record_features(run, table)
            run.write_json("metrics.json", run.metrics | versions())
        return run

    def rehearse(self, fits: Mapping[str, Callable[..., TrainLoop]]) -> None:
        """Fits the stages as `run` does, but for those that have a fit of their own here. Only features stay of it."""
        with (
            tempfile.TemporaryDirectory() as folder,
            self._claimed(folder, "replace") as run,
            self._ready(run, self._load(run, self.data.load)) as fitting,
        ):
            fitting.fits = fits
            self._run_stages(run, fitting)

    @contextmanager
    def _claimed(self, directory: str | Path | None, existing: Existing) -> Iterator[Run]:
        chosen = directory or self.directory or time.strftime("outputs/%Y-%m-%d/%H-%M-%S")
        run = Run.claim(Path(chosen).expanduser().absolute(), "replace" if self.fresh else existing)
        began = time.time()
        with closing(run), _status_kept(run):
            if not run.kept:
                run.write_config(self.config)
            self.preflight()
            yield run
            self.features.prune(since=began)

    def _load(self, run: Run, load: Callable[[FileIndex], DataModule]) -> DataModule:
        with run.phase("data"):
            return load(self.features.file_index())

    def _begin(self, run: Run, data: DataModule) -> int:
        """TensorFlow with its threads, whose number is returned, and what there is to tell of the images."""
        run.write_config(self.config)  # it may have replaced another, which was kept until now
        with run.phase("start"):
            threads = start_backend(self.threads, self.deterministic)
        run.metrics |= {"seed": self.seed, "threads": threads, "deterministic": self.deterministic}
        run.metrics |= {"random_weights": self.falls_back, "resumed_at_epoch": None}
        show_data(data)
        run.write_json("classes.json", list(data.class_names))
        if data.quarantined:
            run.write_csv("set_aside.csv", ["path", "reason"], [[bad.path, bad.reason] for bad in data.quarantined])
        return threads

    @contextmanager
    def _ready(self, run: Run, data: DataModule) -> Iterator[StageRunner]:
        threads = self._begin(run, data)
        job = f"{run.status['identity']} {run.resumes}"
        with open_strategy(self.trainer.distribution, job) as devices:
            yield self._build(run, data, threads, devices)

    def _warn_of_idle_keys(self) -> None:
        stages = self.transfer.values()
        if all(needs_no_epochs(stage, self.head, stage.optimizer_for(self.optimizer)) for stage in stages):
            plain = TrainOptions(distribution=self.trainer.distribution)
            keys = [key.name for key in fields(plain) if getattr(self.trainer, key.name) != getattr(plain, key.name)]
            for key in keys:
                log.warning("trainer.%s changes nothing: the head is computed at once, and no stage has epochs", key)

    def _run(self, run: Run, data: DataModule) -> None:
        self._warn_of_idle_keys()
        with self._ready(run, data) as fitting:
            self._run_stages(run, fitting)
            fitting.finish()
            self._end_as_frozen(run, fitting)
            run.metrics["num_parameters"] = fitting.classifier.count_params()
            with run.phase("evaluate"):
                logits = evaluate_run(run, fitting, self.features.test_views)
            self._record_features(run, fitting.features)
            with run.phase("save"):
                run.write_model(fitting.classifier)
            show_results(run, fitting, self.config, logits)
            run.metrics |= versions()
            run.write_json("metrics.json", run.metrics)  # last: a run with metrics is a run that is whole
            run.drop_checkpoints()
            show_metrics(run.metrics, run.directory, len(run.history))

    def _run_stages(self, run: Run, fitting: StageRunner) -> None:
        """All stages, or those that a checkpoint left to do."""
        checkpoint = run.read_checkpoint() if run.resumes else None
        first = fitting.restore(checkpoint) if checkpoint else 0
        stages = list(self.transfer.items())
        for number, (name, stage) in enumerate(stages[first:], first):
            if fitting.is_late:
                break
            optimizer = stage.optimizer_for(self.optimizer)
            assert isinstance(optimizer, LBFGS | GradientOptimizer)
            try:
                fitting.run_stage(number, name, stage, optimizer, last=number == len(stages) - 1)
            except DivergedError:
                if fitting.has_best:
                    fitting.finish()
                    run.write_model(fitting.classifier)
                raise

    def _end_as_frozen(self, run: Run, fitting: StageRunner) -> None:
        """Where training the backbone made nothing better, the head does not lack the images that told so."""
        name, stage = next(iter(self.transfer.items()))
        optimizer = stage.optimizer_for(self.optimizer)
        is_best = fitting.has_best and run.metrics["best_stage"] == name and not stage.trains_backbone
        if is_best and isinstance(optimizer, LBFGS) and isinstance(self.head, Linear) and fitting.held_out is None:
            fitting.solve_again(name, optimizer)

    def _build(self, run: Run, data: DataModule, threads: int, devices: tf.distribute.Strategy | None) -> StageRunner:
        import keras

        with run.phase("build"):
            backbone = self.start.build()
            keras.utils.set_random_seed(self.seed)
            width, num_classes = backbone.output_shape[-1], len(data.class_names)
            head = None if isinstance(self.head, DirectHead) else self.head.build(width, num_classes)
            features = self._table(backbone, data, threads)
        show_model(self.backbone.name, backbone, head)
        run.metrics |= {f"num_{split}": len(data.indices(split)) for split in ("train", "val", "test")}
        run.metrics |= {"num_classes": len(data.class_names), "num_quarantined": len(data.quarantined)}
        return StageRunner(
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
            strategy=devices,
            deadline=time.monotonic() + 60 * (self.trainer.time_limit or math.inf),
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
    except BaseException as error:
        interrupted = "KeyboardInterrupt" in f"{type(error).__name__} {error}"  # or a TensorFlow error around it
        if not run.kept:
            run.set_status(*(("interrupted", INTERRUPTED) if interrupted else _ended_by(error)))
        if interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    if not run.kept:
        run.set_status("done")


INTERRUPTED = "interrupted by the user or the system"


def _ended_by(error: BaseException) -> tuple[RunState, str]:
    """State and reason."""
    if isinstance(error, PrunedError):
        return "pruned", str(error)
    if isinstance(error, LackingError):
        return "skipped", f"no {error.what}: {error}"
    if isinstance(error, WorkerLostError):
        return "failed", str(error)
    if isinstance(error, InputError):
        return "diverged" if isinstance(error, DivergedError) else "failed", str(error)
    name = type(error).__name__
    # TensorFlow and the C++ library have their own ways to say MemoryError.
    short = name in ("MemoryError", "ResourceExhaustedError") or "bad_alloc" in str(error)
    reason = " ".join(f"{name}: {error}".split()).strip(":")[:500]
    return "failed", f"out of memory: {reason}" if short else reason
