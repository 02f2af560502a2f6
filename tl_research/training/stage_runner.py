"""A classifier while it is being trained: stage after stage on the same backbone and the same head."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tl_research.backend.precision import choose_policy, compute_in
from tl_research.backend.strategy import broadcast_from_chief, sync_batch_norm
from tl_research.backend.train_step import Learning, TrainStep
from tl_research.data.datamodule import DataModule
from tl_research.errors import DivergedError, InputError
from tl_research.features.engines import keras_engine
from tl_research.features.extraction import ORIGINAL, extract_features
from tl_research.features.head_inputs import HeadInputs
from tl_research.features.table import FeatureTable
from tl_research.metrics.classification import accuracy_and_loss, direction
from tl_research.metrics.probabilities import softmax
from tl_research.models.classifier import BatchNorm, Part, build_classifier, set_trainable, trainable_table
from tl_research.models.head import DirectHead, Head
from tl_research.runs.checkpoint import CheckpointState
from tl_research.runs.run import Run
from tl_research.training.callbacks import BestWeights, Callback
from tl_research.training.closed_form import fit_direct, fit_direct_head, needs_no_epochs, solve_linear
from tl_research.training.inputs import StageInputs
from tl_research.training.loop import EpochRow, TrainLoop, TrainOptions
from tl_research.training.optimizer import LBFGS, GradientOptimizer
from tl_research.training.pruning import Trial, current_trial
from tl_research.training.stage import Stage
from tl_research.training.stage_inputs import InputFactory, fits_in_memory
from tl_research.training.summary import show_stage
from tl_research.training.trained_weights import Snapshot, TrainedWeights

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

log = logging.getLogger(__name__)


@dataclass
class StageRunner:
    """What the stages of one run share. `held_out` is set where the head that is kept was fitted on the validation
    images too: logits for them from a head that was not. A head that is made from features comes with its stage."""

    run: Run
    data: DataModule
    backbone: keras.Model
    head: keras.Model | None
    recipe: Head
    features: FeatureTable
    trainer: TrainOptions
    callbacks: Mapping[str, Callback]
    batch_norm: BatchNorm
    seed: int
    threads: int
    strategy: tf.distribute.Strategy | None = None
    held_out: np.ndarray | None = None
    trial: Trial | None = field(default_factory=current_trial)
    deadline: float = math.inf
    fits: Mapping[str, Callable[..., TrainLoop]] = field(default_factory=dict)
    """What a stage of this name is fitted by, in place of `Fit`."""
    _last: bool = False
    _untrained: FeatureTable = field(init=False)
    _classifier: keras.Model | None = None
    _backbone_moved: bool = False
    _best: Snapshot | None = None
    _trained: TrainedWeights = field(default_factory=TrainedWeights)
    _pending: CheckpointState | None = None
    """The fit that a checkpoint was taken from, until its stage goes on."""
    _began: float = field(default_factory=time.monotonic)
    _used: float = 0.0
    """Seconds that earlier processes have spent on the run."""
    _saved: float = -math.inf
    _saving: float = 0.0
    """When the last checkpoint was written, and the seconds that it took."""

    def __post_init__(self) -> None:
        self._untrained = self.features

    @property
    def classifier(self) -> keras.Model:
        """Backbone and head as one: pixels -> logits."""
        if self._classifier is None:
            assert self.head is not None
            self._classifier = build_classifier(self.backbone, self.head)
        return self._classifier

    @property
    def _inputs(self) -> HeadInputs:
        return HeadInputs(self.run, self.data, self.features)

    @property
    def _supply(self) -> InputFactory:
        assert self.head is not None
        return InputFactory(self._inputs, self.backbone, self.head, self.seed, self.threads)

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes, in pixels."""
        return int(self.backbone.input_shape[1])

    def run_stage(
        self, number: int, name: str, stage: Stage, optimizer: LBFGS | GradientOptimizer, *, last: bool
    ) -> None:
        """One stage: on features where only the head learns and what it sees can be kept, on images otherwise. `last`
        lets a head that is solved or made also use the validation images, which nothing needs any more.

        Raises:
            InputError: nothing of the backbone would learn that should; or `DivergedError`.
            PrunedError: the run is a trial that is not worth going on with.
        """
        import keras

        self._last = last
        no_epochs = needs_no_epochs(stage, self.recipe, optimizer)
        repeatable = self.data.augment.changes_nothing or self._inputs.views_are_kept
        on_features = not stage.trains_backbone and (no_epochs or repeatable)
        if on_features:
            if self._backbone_moved:
                self.features = self.features.after_training()
            self._inputs.ensure(validation=no_epochs and last)
        keras.utils.set_random_seed(self.seed)  # so that nothing depends on whether features had to be computed
        if not stage.trains_backbone and isinstance(self.recipe, DirectHead):
            self._make(name, self.recipe, use_val=last)
            self._save(number + 1)
            return
        parts = self._thaw(name, stage)
        if isinstance(optimizer, LBFGS):
            self._describe(name, "solved on features by L-BFGS", parts)
            self._solve(name, optimizer, use_val=last)
        else:
            self._fit(number, name, stage, optimizer, parts, on_features)
        self._save(number + 1)

    def _thaw(self, name: str, stage: Stage) -> list[Part]:
        parts = set_trainable(
            self.classifier, stage.unfreeze, stage.bn or self.batch_norm, stage.parameters, stage.layer_decay
        )
        if stage.trains_backbone and not any(part.learning for part in parts[:-1]):
            raise InputError(
                f"transfer.{name}.parameters={stage.parameters}: the blocks that it unfreezes have none; "
                f"give parameters=all, or unfreeze=all"
            )
        if stage.unfreeze != "all" and stage.unfreeze > len(parts) - 1:
            there_are = f"transfer.{name}.unfreeze={stage.unfreeze}: there are {len(parts) - 1} blocks"
            log.warning("%s, all of which learn (python -m tl_research blocks lists them)", there_are)
        self._trained.track(self.classifier, parts)
        return parts

    def _has_moved(self, part: keras.Model) -> bool:
        return self._trained.includes(self.classifier, part)

    def logits(self, *splits: str) -> np.ndarray:
        """What the classifier, as it is now, says to the examples in these splits: float32 `(n, num_classes)`."""
        return self._logits(self.data.indices(*splits), ORIGINAL)

    def averaged_logits(self, split: str, views: int) -> np.ndarray:
        """Logarithms of the probabilities averaged over each image and so many augmented views of it."""
        indices = self.data.indices(split)
        answers = [softmax(self._logits(indices, view)) for view in (ORIGINAL, *range(views))]
        return np.log(np.maximum(np.mean(answers, axis=0), 1e-30)).astype(np.float32)

    def _logits(self, indices: np.ndarray, view: int) -> np.ndarray:
        if self._backbone_moved:
            engine = keras_engine(self.classifier)  # converting it would take longer than so few images
            return extract_features(
                engine, self.data, indices, self.image_size, threads=self.threads, describe="evaluating", view=view
            )
        assert self.head is not None
        return np.asarray(self.head(self._inputs.get(indices, view), training=False))

    def finish(self) -> None:
        """Ends on the best of all stages, where the callbacks keep the best epoch of each."""
        if self._best is not None:
            self._trained.restore(self.classifier, self._best.weights)
            self.held_out = self._best.held_out

    @property
    def is_late(self) -> bool:
        """Whether the time for training is over, which leaves a run one epoch at least, and a stage that was begun its
        epoch."""
        late = bool(self.run.history) and self._pending is None and time.monotonic() > self.deadline
        return broadcast_from_chief(self.strategy, {"late": late})["late"] > 0

    @property
    def has_best(self) -> bool:
        """Whether an epoch has been kept that the run may end on."""
        return self._best is not None

    def _describe(self, name: str, how: str, parts: Sequence[Part], rate: float | None = None) -> None:
        rows = trainable_table(parts)
        learning = sum(row.trainable for row in rows)
        self.run.metrics["num_trainable"] = max(learning, self.run.metrics.get("num_trainable", 0))
        show_stage(name, rows, how, rate)

    def _solve(self, name: str, options: LBFGS, *, use_val: bool) -> None:
        with self.run.phase(name):
            scores = self._solved(options, use_val=use_val)
        self._log_at_once(name, scores)

    def solve_again(self, name: str, options: LBFGS) -> None:
        """Gives the head that stage `name` solved on the backbone as it was loaded the validation images to learn from,
        which later stages were judged by, in vain: the run ends as it would have without them."""
        self.features, self._backbone_moved = self._untrained, False
        self._inputs.ensure(validation=True)
        with self.run.phase(name):
            self._solved(options, use_val=True)

    def _solved(self, options: LBFGS, *, use_val: bool) -> dict[str, float]:
        """Solves the head; the numbers of one that saw the training images alone."""
        assert self.head is not None
        result = solve_linear(self._inputs, options, self.seed, use_val=use_val)
        solution, self.held_out = result.fitted, result.held_out
        self.head.get_layer("logits").set_weights([solution.kernel, solution.bias])
        self.run.metrics |= {"l2": solution.l2, "iterations": solution.iterations}
        if solution.cv_accuracy is not None:
            self.run.metrics["cv_accuracy"] = solution.cv_accuracy
        return result.scores

    def _make(self, name: str, recipe: DirectHead, *, use_val: bool) -> None:
        with self.run.phase(name):
            result = fit_direct(self._inputs, recipe, use_val=use_val)
            self.head, self._classifier, self.held_out = result.fitted, None, result.held_out
        parts = set_trainable(self.classifier, 0)
        self._trained.track(self.classifier, parts)
        self._describe(name, "made from features", parts)
        self._log_at_once(name, result.scores)

    def _log_at_once(self, name: str, row: dict[str, float]) -> None:
        """Shows the callbacks a head that was solved or made as a stage of one epoch, and records it."""
        import keras

        callbacks = keras.callbacks.CallbackList(self._build_callbacks(), model=self.classifier)
        callbacks.set_params(
            {"epochs": self._next_epoch + 1, "steps": 1, "moving": self._trained.variables(self.classifier)}
        )
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(self._next_epoch)
        callbacks.on_epoch_end(self._next_epoch, dict(row))
        callbacks.on_train_end()
        self._record([{"epoch": self._next_epoch, "stage": name, **row}])

    def _fit(
        self, number: int, name: str, stage: Stage, optimizer: GradientOptimizer, parts: list[Part], only_head: bool
    ) -> None:
        """A stage of epochs. `only_head`: on features."""
        maps = None if only_head else self._supply.maps(stage, self._has_moved)
        policy = "float32" if only_head else choose_policy(self.trainer.precision)
        whole = sync_batch_norm(self.strategy, self.classifier)
        with self.run.phase(name), compute_in(policy, self.backbone), whole:
            feed, step, accumulate = self._ready(stage, optimizer, parts, only_head, maps, policy)
            rate = float(step.optimizer.learning_rate.numpy())
            how = f"{stage.epochs} epochs at most on {WHAT[feed.what]}, {type(optimizer).__name__}"
            self._describe(name, how, parts, rate)
            if feed.what == "images":
                self._show(feed)
            self._backbone_moved = self._backbone_moved or stage.trains_backbone
            fit = self.fits.get(name, TrainLoop)(
                name=name,
                stage=stage,
                trainer=self.trainer,
                model=self.head if only_head else self.classifier,
                step=step,
                rate=rate,
                batches=feed.train,
                batches_per_epoch=feed.num_batches,
                validate=lambda: self._validate(feed),
                callbacks=self._build_callbacks(),
                save=lambda state, whole: self._checkpoint(number, state, whole=whole),
                moving=self._trained.variables(self.classifier),
                first_epoch=self._next_epoch,
                accumulate=accumulate,
                deadline=self.deadline,
            )
            state, self._pending = self._pending, None
            try:
                rows = fit.run(state)
            except DivergedError:
                self._record(fit.rows)
                raise
        self._record(rows)

    def _ready(
        self,
        stage: Stage,
        optimizer: GradientOptimizer,
        parts: Sequence[Part],
        only_head: bool,
        maps: FeatureTable | None,
        policy: str,
    ) -> tuple[StageInputs, TrainStep, int]:
        """What a stage learns from, its step, and how many batches make an update. `trainer.batch_size=auto` halves the
        batch until it fits into a GPU's memory, and leaves an update as many examples as before."""
        auto = self.trainer.batch_size == "auto"
        size, accumulate = 32 if auto else int(self.trainer.batch_size), self.trainer.accumulate
        learning = [Learning(variable, part.rate) for part in parts for variable in part.learning]
        while True:
            feed = self._supply.feed(stage, [item.variable for item in learning], only_head, maps, size)
            step = TrainStep(
                feed.forward,
                learning,
                [variable for part in parts for variable in part.statistics],
                optimizer.build(stage.learning_rate),
                self.trainer.options(loss_scale=policy == "mixed_float16"),
                self.strategy,
                accumulates=accumulate > 1,
            )
            if not auto or only_head or fits_in_memory(step, feed, self._trained.variables(self.classifier)):
                self.run.metrics |= {"batch_size": size, "accumulate": accumulate}
                return feed, step, accumulate
            size, accumulate = size // 2, 2 * accumulate
            if not size:
                raise InputError("trainer.batch_size=auto: not one image fits into the GPU's memory")

    def _show(self, feed: StageInputs) -> None:
        """Lets the callbacks see what the network will, of two batches: one may be hardly mixed at all."""
        with closing(feed.train(self._next_epoch, 0)) as batches:
            some = [(pixels[:8], targets[:8]) for pixels, targets in itertools.islice(batches, 2)]
        pixels, targets = (np.concatenate(parts) for parts in zip(*some, strict=True))
        for callback in self.callbacks.values():
            callback.see(self.run.directory, self._next_epoch, pixels, targets, self.data.class_names)

    def _validate(self, feed: StageInputs) -> dict[str, float]:
        with closing(feed.validation()) as batches:
            logits = np.concatenate([feed.answer(inputs) for inputs, _ in batches])
        scores = accuracy_and_loss(logits, self.data.labels[self.data.indices("val")])
        return {f"val_{key}": value for key, value in scores.items()}

    @property
    def _next_epoch(self) -> int:
        return len(self.run.history)

    def _build_callbacks(self) -> list[keras.callbacks.Callback]:
        callbacks = [callback.build(self.run.directory) for callback in self.callbacks.values()]
        return callbacks if self.trial is None else [*callbacks, self.trial.callback(last=self._last)]

    def _record(self, history: list[EpochRow]) -> None:
        """Adds a stage to the run's history, and keeps its weights if no stage before was better; of equals the one
        that has also learned from the validation images. Raises `PrunedError` if the run is a trial that is to end."""
        self.run.history += history
        self.run.write_history(self.run.history)
        if self.trial is not None:
            self.trial.check()
        for callback in self.callbacks.values():
            if isinstance(callback, BestWeights) and history:
                sign = 1 if direction(callback.monitor) == "min" else -1
                row = min(history, key=lambda row: sign * row[callback.monitor])
                value = sign * row[callback.monitor]
                equal_and_more = self._best is not None and value == self._best.value and self.held_out is not None
                if self._best is None or value < self._best.value or equal_and_more:
                    self._best = Snapshot(value, self._trained.now(self.classifier), self.held_out)
                    self.run.metrics |= {"best_stage": row["stage"], "best_epoch": row["epoch"]}

    # Checkpoints: the run as it stands in the middle of a stage, or between two

    def _checkpoint(self, number: int, fit: CheckpointState, *, whole: bool) -> None:
        """After an epoch, unless epochs are so short that writing would take too much of the time."""
        if not whole or (time.monotonic() - self._saved) * MOST_WRITING >= self._saving:
            self._save(number, fit)
            self.run.write_history([*self.run.history, *fit.facts["rows"]])

    def _save(self, number: int, fit: CheckpointState | None = None) -> None:
        """Keeps the run where it stands: at the beginning of stage `number`, or within it, in `fit`."""
        began = time.monotonic()
        facts = {
            "stage": number,
            "history": self.run.history,
            "metrics": self.run.metrics,
            "features": [self.features.computed, self.features.hit],
            "backbone_moved": self._backbone_moved,
            "used": self._used + time.monotonic() - self._began,
        }
        parts = {"run": CheckpointState(facts, {} if self.held_out is None else {"held_out": self.held_out})}
        parts["moved"] = CheckpointState(
            {}, {str(place): value for place, value in self._trained.now(self.classifier).items()}
        )
        if self._best is not None:
            parts["best"] = self._best.state()
        if fit is not None:
            parts["fit"] = fit
        self.run.write_checkpoint(CheckpointState.nested(**parts))
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def restore(self, state: CheckpointState) -> int:
        """Goes to where a checkpoint was taken; returns the number of the stage to go on with."""
        parts = {name: state.part(name) for name in state.facts}
        if isinstance(self.recipe, DirectHead):  # its layers come from the features
            splits = ("train", "val") if "held_out" in parts["run"].arrays else ("train",)
            self._inputs.ensure(validation="val" in splits)
            self.head, self._classifier = fit_direct_head(self._inputs, self.recipe, *splits), None
        self._trained.restore_checkpoint(self.classifier, {int(place): v for place, v in parts["moved"].arrays.items()})
        facts = parts["run"].facts
        self.run.history = list(facts["history"])
        self.run.metrics |= facts["metrics"]
        self.features.computed += facts["features"][0]
        self.features.hit += facts["features"][1]
        self.held_out, self._backbone_moved = parts["run"].arrays.get("held_out"), facts["backbone_moved"]
        self._used = facts["used"]
        self.deadline -= self._used
        self._best = Snapshot.of(parts["best"]) if "best" in parts else None
        self._pending = parts.get("fit")
        epochs = len(self.run.history) + (len(self._pending.facts["rows"]) if self._pending else 0)
        self.run.metrics["resumed_at_epoch"] = epochs
        return int(facts["stage"])


MOST_WRITING = 0.1
"""The share of the time that checkpoints may take: an epoch of a head is over in milliseconds."""
WHAT = {"features": "features", "maps": "what the frozen blocks made of the images", "images": "images"}
