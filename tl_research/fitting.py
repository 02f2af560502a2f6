"""A classifier while it is being trained: stage after stage on the same backbone and the same head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl_research import describe, engines
from tl_research.callbacks import BestWeights, Callback
from tl_research.classifier import BatchNorm, assemble, set_trainable, trainable_table
from tl_research.data.datamodule import DataModule
from tl_research.data.stream import rows
from tl_research.features import FeatureTable
from tl_research.head import Head, Probe
from tl_research.metrics import direction, evaluate
from tl_research.optimizer import LBFGS, GradientOptimizer
from tl_research.passes import PLAIN, extract
from tl_research.probe import softmax, solve
from tl_research.run import Run
from tl_research.trainer import Row, Trainer
from tl_research.transfer import Stage

if TYPE_CHECKING:
    import keras


@dataclass
class Fitting:
    """What the stages of one run share. `held_out` is set where the head that is kept was fitted on the validation
    images too: logits for them from a head that was not. A head that is made from features comes with its stage."""

    run: Run
    data: DataModule
    backbone: keras.Model
    head: keras.Model | None
    recipe: Head
    features: FeatureTable
    trainer: Trainer
    callbacks: Mapping[str, Callback]
    batch_norm: BatchNorm
    seed: int
    threads: int
    held_out: np.ndarray | None = None
    _classifier: keras.Model | None = None
    _backbone_moved: bool = False
    _best: tuple[float, list[np.ndarray], np.ndarray | None] | None = None

    @property
    def classifier(self) -> keras.Model:
        """Backbone and head as one: pixels -> logits."""
        if self._classifier is None:
            assert self.head is not None
            self._classifier = assemble(self.backbone, self.head)
        return self._classifier

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes, in pixels."""
        return int(self.backbone.input_shape[1])

    @property
    def views(self) -> int:
        """How many versions of each image a head learns from."""
        return self.features.options.views or 1

    def fit_stage(self, name: str, stage: Stage, optimizer: LBFGS | GradientOptimizer, *, last: bool) -> None:
        """One stage: on features where only the head learns and what it sees can be kept, on images otherwise. `last`
        lets a head that is solved or made also use the validation images, which nothing needs any more."""
        import keras

        at_once = isinstance(self.recipe, Probe) or isinstance(optimizer, LBFGS)
        on_features = not stage.trains_backbone and (self.data.augment.changes_nothing or self.views_are_kept)
        if on_features:
            if self._backbone_moved:
                self.features = self.features.after_training()
            self._prepare(validation=at_once and last)
        keras.utils.set_random_seed(self.seed)  # so that nothing depends on whether features had to be computed
        if not stage.trains_backbone and isinstance(self.recipe, Probe):
            self._make(name, self.recipe, use_val=last)
            return
        set_trainable(self.classifier, stage.unfreeze, stage.bn or self.batch_norm)
        if isinstance(optimizer, LBFGS):
            self._describe(name, "solved on features by L-BFGS")
            self._solve(name, optimizer, use_val=last)
            return
        where = "features" if on_features else "images"
        self._describe(name, f"{stage.epochs} epochs at most on {where}, {type(optimizer).__name__}")
        if on_features:
            self._fit_head(name, stage, optimizer)
        else:
            self._fit_classifier(name, stage, optimizer)

    @property
    def views_are_kept(self) -> bool:
        """Whether a head learns from views that are computed once, instead of from a new one each epoch."""
        return self.features.options.views is not None

    def logits(self, *splits: str) -> np.ndarray:
        """What the classifier, as it is now, says to the examples in these splits: float32 `(n, num_classes)`."""
        return self._logits(self.data.indices(*splits), PLAIN)

    def averaged_logits(self, split: str, views: int) -> np.ndarray:
        """Logarithms of the probabilities averaged over each image and so many augmented views of it."""
        indices = self.data.indices(split)
        answers = [softmax(self._logits(indices, view)) for view in (PLAIN, *range(views))]
        return np.log(np.maximum(np.mean(answers, axis=0), 1e-30)).astype(np.float32)

    def _logits(self, indices: np.ndarray, view: int) -> np.ndarray:
        if self._backbone_moved:
            engine = engines.keras_engine(self.classifier)  # converting it would take longer than so few images
            return extract(
                engine, self.data, indices, self.image_size, threads=self.threads, describe="evaluating", view=view
            )
        with self.run.phase("features"):
            rows = self.features.rows(indices, view)
        assert self.head is not None
        return np.asarray(self.head(rows, training=False))

    def finish(self) -> None:
        """Ends on the best of all stages, where the callbacks keep the best epoch of each."""
        if self._best is not None:
            _, weights, self.held_out = self._best
            self.classifier.set_weights(weights)

    def _describe(self, name: str, how: str) -> None:
        table = trainable_table(self.classifier)
        learning = sum(row.trainable for row in table)
        self.run.metrics["num_trainable"] = max(learning, self.run.metrics.get("num_trainable", 0))
        describe.stage(name, table, how)

    def _prepare(self, *, validation: bool) -> None:
        """All features that a stage and the evaluation need, in one pass over the images."""
        everything = np.arange(len(self.data))
        if not self.views_are_kept:
            wanted = [(everything, PLAIN)]
        else:
            trained = self.data.indices("train", "val") if validation else self.data.indices("train")
            wanted = [(self.data.indices("val", "test"), PLAIN), *((trained, view) for view in range(self.views))]
        computed, hit = self.features.computed, self.features.hit
        with self.run.phase("features"):
            self.features.prepare(wanted)
        if (computed, hit) != (self.features.computed, self.features.hit):
            describe.features(self.features.computed - computed, self.features.hit - hit)

    def _learned(self, *splits: str) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels that a head learns from: the views of an image one after the other."""
        indices = self.data.indices(*splits)
        views = range(self.views) if self.views_are_kept else [PLAIN]
        rows = np.stack([self.features.rows(indices, view) for view in views], axis=1)
        return rows.reshape(-1, rows.shape[-1]), self.data.labels[indices].repeat(len(views))

    def _plain(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        indices = self.data.indices(split)
        return self.features.rows(indices), self.data.labels[indices]

    def _solve(self, name: str, options: LBFGS, *, use_val: bool) -> None:
        assert self.head is not None
        with self.run.phase(name):
            features, labels = self._learned("train")
            solution = solve(features, labels, options, self.seed, self.views)
            logits = {"train": solution.logits(features), "val": solution.logits(self._plain("val")[0])}
            row = self._scores(logits["train"], labels, logits["val"])
            if use_val:
                self.held_out = logits["val"]
                solution = solve(*self._learned("train", "val"), options, self.seed, self.views)
            self.head.get_layer("logits").set_weights([solution.kernel, solution.bias])
        self.run.metrics |= {"l2": solution.l2, "iterations": solution.iterations}
        if solution.cv_accuracy is not None:
            self.run.metrics["cv_accuracy"] = solution.cv_accuracy
        self._log_at_once(name, row)

    def _make(self, name: str, recipe: Probe, *, use_val: bool) -> None:
        with self.run.phase(name):
            features, labels = self._learned("train")
            num_classes = len(self.data.class_names)
            head = recipe.fit(features, labels, num_classes, self.views)
            logits = {"train": np.asarray(head(features)), "val": np.asarray(head(self._plain("val")[0]))}
            row = self._scores(logits["train"], labels, logits["val"])
            if use_val:
                self.held_out = logits["val"]
                head = recipe.fit(*self._learned("train", "val"), num_classes, self.views)
            self.head, self._classifier = head, None
        set_trainable(self.classifier, 0, self.batch_norm)
        self._describe(name, "made from features")
        self._log_at_once(name, row)

    def _scores(self, train_logits: np.ndarray, labels: np.ndarray, val_logits: np.ndarray) -> dict[str, float]:
        scores = {"": evaluate(train_logits, labels), "val_": evaluate(val_logits, self._plain("val")[1])}
        return {f"{split}{key}": values[key] for split, values in scores.items() for key in ("accuracy", "loss")}

    def _log_at_once(self, name: str, row: dict[str, float]) -> None:
        """Shows the callbacks a head that was solved or made as a stage of one epoch, and records it."""
        import keras

        callbacks = keras.callbacks.CallbackList(self._build_callbacks(), model=self.classifier)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(self._next_epoch)
        callbacks.on_epoch_end(self._next_epoch, dict(row))
        callbacks.on_train_end()
        self._record([{"epoch": self._next_epoch, "stage": name, **row}])

    def _fit_head(self, name: str, stage: Stage, optimizer: GradientOptimizer) -> None:
        size = self.trainer.batch_size
        train = rows(*self._learned("train"), size, shuffle=self.seed)
        val = rows(*self._plain("val"), size)
        self._fit(self.head, train, val, name, stage, optimizer)

    def _fit_classifier(self, name: str, stage: Stage, optimizer: GradientOptimizer) -> None:
        size, batch = self.image_size, self.trainer.batch_size
        train = self.data.dataset(self.data.indices("train"), size, batch, shuffle=self.seed)
        val = self.data.dataset(self.data.indices("val"), size, batch)
        self._backbone_moved = self._backbone_moved or stage.trains_backbone
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
        """Adds a stage to the run's history, and keeps its weights if no stage before was better; of equals the one
        that has also learned from the validation images."""
        self.run.history += history
        self.run.write_history()
        for callback in self.callbacks.values():
            if isinstance(callback, BestWeights):
                sign = 1 if direction(callback.monitor) == "min" else -1
                row = min(history, key=lambda row: sign * row[callback.monitor])
                value = sign * row[callback.monitor]
                equal_and_more = self._best is not None and value == self._best[0] and self.held_out is not None
                if self._best is None or value < self._best[0] or equal_and_more:
                    self._best = (value, self.classifier.get_weights(), self.held_out)
                    self.run.metrics |= {"best_stage": row["stage"], "best_epoch": row["epoch"]}
