"""A classifier while it is being trained: stage after stage on the same backbone and the same head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tl_research import describe, engines
from tl_research.callbacks import BestWeights, Callback
from tl_research.classifier import BatchNorm, assemble, set_trainable, trainable_table
from tl_research.data.datamodule import DataModule
from tl_research.data.stream import rows
from tl_research.engines import EngineName
from tl_research.features import extract
from tl_research.metrics import direction, evaluate
from tl_research.optimizer import LBFGS, GradientOptimizer
from tl_research.probe import solve
from tl_research.run import Run
from tl_research.trainer import Row, Trainer
from tl_research.transfer import Stage

if TYPE_CHECKING:
    import keras


@dataclass
class Fitting:
    """What the stages of one run share. `held_out` is set where the head that is kept was fitted on the validation
    images too: logits for them from a head that was not."""

    run: Run
    data: DataModule
    backbone: keras.Model
    head: keras.Model
    trainer: Trainer
    callbacks: Mapping[str, Callback]
    batch_norm: BatchNorm
    seed: int
    threads: int
    engine: EngineName
    held_out: np.ndarray | None = None
    classifier: keras.Model = field(init=False)
    _features: np.ndarray | None = None
    _backbone_moved: bool = False
    _best: tuple[float, list[np.ndarray]] | None = None

    def __post_init__(self) -> None:
        self.classifier = assemble(self.backbone, self.head)

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes, in pixels."""
        return int(self.backbone.input_shape[1])

    def fit_stage(self, name: str, stage: Stage, optimizer: LBFGS | GradientOptimizer, *, last: bool) -> None:
        """One stage: on features where only the head learns, on images otherwise. `last` lets a solved head also use
        the validation images, which nothing needs any more."""
        import keras

        keras.utils.set_random_seed(self.seed)  # so that nothing depends on whether features had to be computed
        set_trainable(self.classifier, stage.unfreeze, stage.bn or self.batch_norm)
        if isinstance(optimizer, LBFGS):
            describe.stage(name, trainable_table(self.classifier), "solved on features by L-BFGS")
            self._solve(name, optimizer, use_val=last)
        elif not stage.trains_backbone:
            how = f"{stage.epochs} epochs at most on features, {type(optimizer).__name__}"
            describe.stage(name, trainable_table(self.classifier), how)
            self._fit_head(name, stage, optimizer)
        else:
            how = f"{stage.epochs} epochs at most on images, {type(optimizer).__name__}"
            describe.stage(name, trainable_table(self.classifier), how)
            self._fit_classifier(name, stage, optimizer)

    def features(self, *splits: str) -> np.ndarray:
        """Features of the examples in these splits, in order; all images pass through the backbone once."""
        if self._features is None:
            with self.run.phase("features"):
                everything = np.arange(len(self.data))
                engine = engines.build(self.engine, self.backbone, self.threads)
                self._features = extract(engine, self.data, everything, self.image_size, threads=self.threads)
        return self._features[self.data.indices(*splits)]

    def logits(self, *splits: str) -> np.ndarray:
        """What the classifier, as it is now, says to the examples in these splits: float32 `(n, num_classes)`."""
        if self._backbone_moved:
            indices = self.data.indices(*splits)
            engine = engines.keras_engine(self.classifier)  # converting it would take longer than so few images
            return extract(engine, self.data, indices, self.image_size, threads=self.threads, describe="evaluating")
        return np.asarray(self.head(self.features(*splits), training=False))

    def finish(self) -> None:
        """Ends on the best of all stages, where the callbacks keep the best epoch of each."""
        if self._best is not None:
            self.classifier.set_weights(self._best[1])

    def _labels(self, *splits: str) -> np.ndarray:
        return self.data.labels[self.data.indices(*splits)]

    def _solve(self, name: str, options: LBFGS, *, use_val: bool) -> None:
        features = {split: self.features(split) for split in ("train", "val")}
        with self.run.phase(name):
            solution = solve(features["train"], self._labels("train"), options, self.seed)
            logits = {split: values @ solution.kernel + solution.bias for split, values in features.items()}
            scores = {split: evaluate(logits[split], self._labels(split)) for split in features}
            if use_val:
                self.held_out = logits["val"]
                solution = solve(self.features("train", "val"), self._labels("train", "val"), options, self.seed)
            self.head.get_layer("logits").set_weights([solution.kernel, solution.bias])
        self.run.metrics |= {"l2": solution.l2, "iterations": solution.iterations}
        if solution.cv_accuracy is not None:
            self.run.metrics["cv_accuracy"] = solution.cv_accuracy
        row = {key: scores["train"][key] for key in ("accuracy", "loss")}
        row |= {f"val_{key}": scores["val"][key] for key in ("accuracy", "loss")}
        self._log_solution(row)
        self._record([{"epoch": self._next_epoch, "stage": name, **row}])

    def _log_solution(self, logs: dict[str, float]) -> None:
        """Shows the callbacks a solved head as a stage of one epoch."""
        import keras

        callbacks = keras.callbacks.CallbackList(self._build_callbacks(), model=self.classifier)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(self._next_epoch)
        callbacks.on_epoch_end(self._next_epoch, dict(logs))
        callbacks.on_train_end()

    def _fit_head(self, name: str, stage: Stage, optimizer: GradientOptimizer) -> None:
        size = self.trainer.batch_size
        train = rows(self.features("train"), self._labels("train"), size, shuffle=self.seed)
        val = rows(self.features("val"), self._labels("val"), size)
        self._fit(self.head, train, val, name, stage, optimizer)

    def _fit_classifier(self, name: str, stage: Stage, optimizer: GradientOptimizer) -> None:
        size, batch = self.image_size, self.trainer.batch_size
        train = self.data.dataset(self.data.indices("train"), size, batch, shuffle=self.seed)
        val = self.data.dataset(self.data.indices("val"), size, batch)
        self._backbone_moved = True
        self._features = None
        self._fit(self.classifier, train, val, name, stage, optimizer)

    def _fit(self, model, train, val, name: str, stage: Stage, optimizer: GradientOptimizer) -> None:  # type: ignore[no-untyped-def]
        with self.run.phase(name):
            history = self.trainer.fit(
                model,
                train,
                val,
                optimizer.build(stage.learning_rate),
                stage=name,
                epochs=stage.epochs,
                first_epoch=self._next_epoch,
                callbacks=self._build_callbacks(),
            )
        self._record(history)

    @property
    def _next_epoch(self) -> int:
        return len(self.run.history)

    def _build_callbacks(self) -> list[keras.callbacks.Callback]:
        return [callback.build(self.run.directory) for callback in self.callbacks.values()]

    def _record(self, history: list[Row]) -> None:
        """Adds a stage to the run's history, and keeps its weights if no stage before was better."""
        self.run.history += history
        self.run.write_history()
        for callback in self.callbacks.values():
            if isinstance(callback, BestWeights):
                sign = 1 if direction(callback.monitor) == "min" else -1
                row = min(history, key=lambda row: sign * row[callback.monitor])
                value = sign * row[callback.monitor]
                if self._best is None or value < self._best[0]:
                    self._best = (value, self.classifier.get_weights())
                    self.run.metrics |= {"best_stage": row["stage"], "best_epoch": row["epoch"]}
