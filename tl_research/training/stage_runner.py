"""StageRunner: run stages one after the other on the same backbone and head."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.precision import choose_policy, compute_in
from tl_research.backend.strategy import Strategy, broadcast_from_chief, sync_batch_norm
from tl_research.errors import DivergedError, InputError
from tl_research.metrics.classification import accuracy_and_loss
from tl_research.models.classifier import BatchNorm, Part, trainable_table
from tl_research.models.head import DirectHead, Head
from tl_research.models.trainable_plan import TrainablePlan, resolve_plan
from tl_research.runs.checkpoint import CheckpointState
from tl_research.runs.run import Run
from tl_research.training.callbacks import BestWeights, Callback, show_batches
from tl_research.training.classifier_state import ClassifierState
from tl_research.training.closed_form import fit_direct, fit_direct_head, judge_halves, needs_no_epochs, solve_linear
from tl_research.training.inputs import InputFactory, StageInputs
from tl_research.training.logistic_regression import Choice
from tl_research.training.loop import EpochRow, TrainLoop
from tl_research.training.optimizer import LBFGS, GradientOptimizer
from tl_research.training.options import TrainOptions
from tl_research.training.pruning import Trial
from tl_research.training.run_checkpoints import RunCheckpoints
from tl_research.training.stage import Stage
from tl_research.training.step_setup import make_step
from tl_research.training.summary import show_epoch, show_stage
from tl_research.training.trained_weights import BestEpoch

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

Metrics = dict[str, Any]


@dataclass
class StageRunner:
    """The stages of one run. Each `run_stage` returns its metrics and leaves `state` on its best epoch; `finish`
    restores the best of all.

    `loops` are the training loops of single stages by name, in place of `TrainLoop`; a run beyond `deadline`
    (`time.monotonic`) starts no further stage.
    """

    run: Run
    state: ClassifierState
    head_recipe: Head
    trainer: TrainOptions
    callbacks: Mapping[str, Callback]
    batch_norm: BatchNorm
    seed: int
    strategy: Strategy | None = None
    trial: Trial | None = None
    deadline: float = math.inf
    shows_images: bool = True
    choice: Choice | None = None
    """That of the penalty of a linear head on train + val, on the backbone as it was loaded, where it is known."""
    loops: Mapping[str, Callable[..., TrainLoop]] = field(default_factory=dict)
    history: list[EpochRow] = field(default_factory=list)
    best: BestEpoch = field(default_factory=BestEpoch)
    validated: np.ndarray = field(default_factory=lambda: np.empty(0))
    """The logits of the last validation."""
    _most_trainable: int = 0
    _pending: CheckpointState | None = None
    """The training loop that a checkpoint was saved in, until its stage continues."""

    def __post_init__(self) -> None:
        self.checkpoints = RunCheckpoints(self.run, self.state, self.history)

    def run_stage(
        self, number: int, name: str, stage: Stage, optimizer: LBFGS | GradientOptimizer, *, last: bool
    ) -> Metrics:
        """Run one stage: on features if only the head learns from repeatable inputs, on images otherwise. In the `last`
        stage a head in closed form is also fitted on the validation images, which nothing else needs then.

        Raises:
            InputError: nothing of the backbone would learn that should; or `DivergedError`.
            PrunedError: the run is a trial that is not worth continuing.
        """
        import keras

        no_epochs = needs_no_epochs(stage, self.head_recipe, optimizer)
        repeatable = self.state.data.augment.changes_nothing or self.state.inputs.views_are_kept
        on_features = not stage.trains_backbone and (no_epochs or repeatable)
        if on_features:
            self.state.update_features()
            self.state.inputs.ensure(validation=no_epochs and last)
        keras.utils.set_random_seed(self.seed)  # so that nothing depends on whether features had to be computed
        if not stage.trains_backbone and isinstance(self.head_recipe, DirectHead):
            metrics = self._fit_direct(name, self.head_recipe, last=last)
        elif isinstance(optimizer, LBFGS):
            self._describe(name, "solved on features by L-BFGS", self._resolve_plan(name, stage).parts)
            metrics = self._solve_linear(name, optimizer, last=last)
        else:
            plan = self._resolve_plan(name, stage)
            metrics = self._train(number, name, stage, optimizer, plan, only_head=on_features, last=last)
        return metrics | {"num_trainable": self._most_trainable}

    def save(self, stage: int) -> None:
        """Write a checkpoint at the beginning of stage number `stage`."""
        self.checkpoints.save(stage, self.best)

    def restore(self, checkpoint: CheckpointState) -> int:
        """Restore a checkpoint; return the number of the stage to continue with."""
        parts = {name: checkpoint.part(name) for name in checkpoint.facts}
        if isinstance(self.head_recipe, DirectHead):  # its layers come from the features
            splits = ("train", "val") if "held_out" in parts["run"].arrays else ("train",)
            self.state.inputs.ensure(validation="val" in splits)
            self.state.replace_head(fit_direct_head(self.state.inputs, self.head_recipe, *splits))
        self.best = self.checkpoints.restore(parts)
        self.deadline -= self.checkpoints.used
        self._pending = parts.get("fit")
        self._most_trainable = self.run.metrics.get("num_trainable", 0)
        epochs = len(self.history) + (len(self._pending.facts["rows"]) if self._pending else 0)
        self.run.metrics["resumed_at_epoch"] = epochs
        return int(parts["run"].facts["stage"])

    def finish(self) -> Metrics:
        """Restore the best epoch of all stages, if the callbacks keep the best of each."""
        if self.best.stage is not None:
            self.state.trained.restore(self.state.classifier, self.best.weights)
            self.state.held_out = self.best.held_out
            if self.best.held_out is None:  # the best is no head solved in the last stage
                self.state.out_of_fold = self.state.test_by_halves = None
        return self.best.metrics()

    def solve_again(self, name: str, optimizer: LBFGS) -> Metrics:
        """Refit the linear head of stage `name` on train + val, on the backbone as it was loaded: the run ends as it
        would have without the later stages, which did not improve validation."""
        self.state.use_loaded_backbone()
        self.state.inputs.ensure(validation=True)
        with self.run.phase(name):
            return self._solved(optimizer, use_val=True)[1]

    @property
    def is_late(self) -> bool:
        """Return whether no further stage may start; a run and a stage that was begun get one epoch at least."""
        late = bool(self.history) and self._pending is None and time.monotonic() > self.deadline
        return broadcast_from_chief(self.strategy, {"late": late})["late"] > 0

    def _resolve_plan(self, name: str, stage: Stage) -> TrainablePlan:
        classifier, batch_norm = self.state.classifier, stage.bn or self.batch_norm
        plan = resolve_plan(classifier, stage.unfreeze, batch_norm, stage.parameters, stage.layer_decay)
        parts = plan.parts
        if stage.trains_backbone and not any(part.learning for part in parts[:-1]):
            raise InputError(
                f"transfer.{name}.parameters={stage.parameters}: the blocks that it unfreezes have none; "
                f"give parameters=all, or unfreeze=all"
            )
        if stage.unfreeze != "all" and stage.unfreeze > len(parts) - 1:
            there_are = f"transfer.{name}.unfreeze={stage.unfreeze}: there are {len(parts) - 1} blocks"
            log.warning("%s, all of which learn (python -m tl_research blocks lists them)", there_are)
        self.state.trained.track(classifier, parts)
        return plan

    def _describe(self, name: str, how: str, parts: Sequence[Part], rate: float | None = None) -> None:
        rows = trainable_table(parts)
        self._most_trainable = max(sum(row.trainable for row in rows), self._most_trainable)
        show_stage(name, rows, how, rate)

    def _solve_linear(self, name: str, optimizer: LBFGS, *, last: bool) -> Metrics:
        with self.run.phase(name):
            scores, metrics = self._solved(optimizer, use_val=last)
        self._record_closed_form(name, scores, last=last)
        return metrics

    def _solved(self, optimizer: LBFGS, *, use_val: bool) -> tuple[EpochRow, Metrics]:
        """Solve the head; returns the scores of one fitted on the training images alone, and the metrics."""
        assert self.state.head is not None
        known = self.choice if optimizer == LBFGS() and not self.state.backbone_changed else None
        result = solve_linear(self.state.inputs, optimizer, self.trainer, self.seed, known, use_val=use_val)
        solution, self.state.held_out = result.fitted, result.held_out
        self.state.out_of_fold, self.state.judged = solution.out_of_fold if use_val else None, solution.image_losses[0]
        if use_val and not self.state.backbone_changed and len(self.state.data.indices("test")):
            self.state.test_by_halves = judge_halves(self.state.inputs, self.trainer, solution.l2)
        self.state.head.get_layer("logits").set_weights([solution.kernel, solution.bias])
        metrics = {"l2": solution.l2, "iterations": solution.iterations}
        if solution.cv_accuracy is not None:
            metrics |= {"cv_accuracy": solution.cv_accuracy, "cv_loss": solution.cv_loss}
        return result.scores, metrics

    def _fit_direct(self, name: str, recipe: DirectHead, *, last: bool) -> Metrics:
        with self.run.phase(name):
            result = fit_direct(self.state.inputs, recipe, use_val=last)
            self.state.replace_head(result.fitted)
            self.state.held_out = result.held_out
        parts = resolve_plan(self.state.classifier, 0).parts
        self.state.trained.track(self.state.classifier, parts)
        self._describe(name, "made from features", parts)
        self._record_closed_form(name, result.scores, last=last)
        return {}

    def _record_closed_form(self, name: str, scores: EpochRow, *, last: bool) -> None:
        """Show the callbacks a head in closed form as a stage of one epoch, and record it."""
        import keras

        epoch, classifier = len(self.history), self.state.classifier
        callbacks = keras.callbacks.CallbackList(self._build_callbacks(last=last), model=classifier)
        changing = self.state.trained.variables(classifier)
        callbacks.set_params({"epochs": epoch + 1, "steps": 1, "moving": changing})
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(epoch)
        callbacks.on_epoch_end(epoch, dict(scores))
        callbacks.on_train_end()
        row = {"epoch": epoch, "stage": name, **scores}
        show_epoch(row)
        self._record([row])

    def _train(
        self,
        number: int,
        name: str,
        stage: Stage,
        optimizer: GradientOptimizer,
        plan: TrainablePlan,
        *,
        only_head: bool,
        last: bool,
    ) -> Metrics:
        """Train a stage by epochs; with `only_head` on features."""
        state = self.state
        state.out_of_fold = None
        factory = InputFactory(state.inputs, self.seed, state.threads)
        maps = None if only_head else factory.cache_maps(plan, state.has_changed)
        policy = "float32" if only_head else choose_policy(self.trainer.precision)
        with self.run.phase(name), compute_in(policy, state.backbone), sync_batch_norm(self.strategy, state.classifier):
            inputs, step, metrics = make_step(
                lambda size: factory.build(plan, only_head, maps, size),
                lambda: optimizer.build(stage.learning_rate),
                plan,
                self.trainer,
                self.trainer.balance(state.data, "train"),
                self.strategy,
                state.trained.variables(state.classifier),
                loss_scale=policy == "mixed_float16",
            )
            how = f"{stage.epochs} epoch(s) at most on {inputs.described}, {type(optimizer).__name__}"
            self._describe(name, how, plan.parts, rate := float(step.optimizer.learning_rate.numpy()))
            if inputs.kind == "images" and self.shows_images:
                classes = state.data.class_names
                show_batches(self.callbacks.values(), self.run.directory, len(self.history), inputs, classes)
            state.backbone_changed = state.backbone_changed or stage.trains_backbone
            loop = self.loops.get(name, TrainLoop)(
                name=name,
                stage=stage,
                trainer=self.trainer,
                model=state.head if only_head else state.classifier,
                step=step,
                rate=rate,
                batches=inputs.train,
                batches_per_epoch=inputs.num_batches,
                validate=lambda: self._validate(inputs),
                callbacks=self._build_callbacks(last=last),
                save=lambda loop_state, whole: self.checkpoints.save_epoch(number, self.best, loop_state, whole=whole),
                moving=state.trained.variables(state.classifier),
                first_epoch=len(self.history),
                accumulate=metrics["accumulate"],
                deadline=self.deadline,
            )
            pending, self._pending = self._pending, None
            try:
                rows = loop.run(pending)
            except DivergedError:
                self._record(loop.rows)
                raise
        self._record(rows)
        return metrics

    def _validate(self, inputs: StageInputs) -> dict[str, float]:
        data = self.state.data
        with closing(inputs.validation()) as batches:
            self.validated = np.concatenate([inputs.logits(batch) for batch, _ in batches])
        scores = accuracy_and_loss(self.validated, data.labels[data.indices("val")])
        return {f"val_{key}": value for key, value in scores.items()}

    def _build_callbacks(self, *, last: bool) -> list[keras.callbacks.Callback]:
        callbacks = [callback.build(self.run.directory) for callback in self.callbacks.values()]
        return callbacks if self.trial is None else [*callbacks, self.trial.callback(last=last)]

    def _record(self, rows: list[EpochRow]) -> None:
        """Add a stage's epochs to the history, and keep its weights if no stage before was better. Raises
        `PrunedError` if the run is a trial that is to end."""
        self.history += rows
        self.run.write_history(self.history)
        if self.trial is not None:
            self.trial.check()
        monitor = next((c.monitor for c in self.callbacks.values() if isinstance(c, BestWeights)), None)
        if rows and monitor:
            self.best.consider(rows, monitor, self.state.trained.now(self.state.classifier), self.state.held_out)
