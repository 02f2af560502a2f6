"""Choose fine-tuning by cross-validation. Of a few hundred images, too few are held out for validation to tell whether
training the backbone helped; in folds each training and validation image judges once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tl_research.backend.strategy import broadcast_from_chief
from tl_research.data.datamodule import DataModule
from tl_research.data.splits import stratified_parts
from tl_research.errors import DivergedError
from tl_research.metrics.classification import accuracy_and_loss, direction
from tl_research.metrics.paired import is_gain
from tl_research.metrics.probabilities import softmax
from tl_research.models.trainable_plan import resolve_plan
from tl_research.system.console import silenced
from tl_research.training.callbacks import BestWeights, EarlyStopping
from tl_research.training.classifier_state import ClassifierState
from tl_research.training.logistic_regression import OutOfFold
from tl_research.training.loop import TrainLoop
from tl_research.training.optimizer import LBFGS, GradientOptimizer
from tl_research.training.stage import Stage
from tl_research.training.stage_runner import Metrics, StageRunner
from tl_research.training.summary import show_fold, show_fold_choice
from tl_research.training.time_limit import EpochBudget, TooSlowError
from tl_research.training.trained_weights import BestEpoch, TrainedWeights, Weights, assign_weights, interpolate

log = logging.getLogger(__name__)

FOLDS = 3
RATES = (1.0, 3.0, 0.3)
"""Factors of each stage's learning rate, tried in this order while there is time."""

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the way from frozen to tuned weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903); at 0 is the frozen
head, which is a candidate in any case."""

Stages = Sequence[tuple[str, Stage, LBFGS | GradientOptimizer]]


@dataclass(frozen=True)
class Tuning:
    """A result that fine-tuning may have: after `epochs` of training the backbone (0: the frozen head) at `rate` times
    the stages' learning rates, `alpha` of the way from frozen to tuned weights."""

    rate: float = 1.0
    epochs: int = 0
    alpha: float = 1.0


OutOfFoldLogits = dict[Tuning, np.ndarray]
"""Logits `(n, k)` of candidates for all images; rows of images that no fold holds out are NaN."""


def tune_by_folds(
    runner: StageRunner, stages: Stages, *, interpolated: bool, worth: Callable[[OutOfFold], bool] | None = None
) -> Metrics:
    """Train all stages in `FOLDS` folds of the training and validation images, choose epochs, learning rate and, where
    `interpolated`, the share of the way by the mean out-of-fold score, and train so on all of these images; return the
    metrics. The first stage solves the head, the others train the backbone. The frozen head stays unless fine-tuning is
    better by more than a standard error of the difference. With `worth`, which judges the out-of-fold logits of the
    choice, another classifier stays, and this one is not fitted unless it is worth it.

    The folds may take four fifths of the time that is left until the runner's deadline. The first updates show how many
    epochs in each, and in the final fit, that allows: if less than all, stages are shortened; if none, the frozen head
    stays. Nothing is saved on the way: a run that is interrupted begins anew. Raises `InputError`, see `tuning_folds`.
    """
    state, data = runner.state, runner.state.data
    learned, monitor = data.indices("train", "val"), _monitor(runner)
    alphas = ALPHAS if interpolated else (1.0,)
    # Beside each fold's training, on two thirds of the images: answers to the third that it holds out, which cost a
    # third of training on it, for each share of the way; then the final fit, on all images; a fifth to compile them.
    cost = 1.2 * (FOLDS * (1 + len(alphas) / (3 * (FOLDS - 1))) + FOLDS / (FOLDS - 1))
    budget = EpochBudget(sum(stage.epochs for _, stage, _ in stages[1:]), cost, runner.deadline)
    logits = _judge_all(runner, stages, alphas, budget)
    scores = {each: accuracy_and_loss(rows[learned], data.labels[learned]) for each, rows in logits.items()}
    choice = choose_tuning(logits, data.labels, learned, monitor, data.kept_together(learned))
    if worth and not worth((logits[choice][learned], data.labels[learned])):
        choice = Tuning()
    show_fold_choice(choice.rate, choice.epochs, choice.alpha, scores[choice], scores[Tuning()], FOLDS)
    rows = [[each.rate, each.epochs, each.alpha if each.epochs else 0, *scores[each].values()] for each in scores]
    runner.run.write_csv("folds.csv", ["rate", "epochs", "alpha", *scores[choice]], rows)
    metrics = {f"frozen_fold_{name}": value for name, value in scores[Tuning()].items()}
    if not choice.epochs and not worth:
        metrics |= runner.run_stage(0, *stages[0], last=True) | runner.finish()
    elif choice.epochs:
        curve = {each.epochs: scores[each] for each in scores if (each.rate, each.alpha) == (choice.rate, choice.alpha)}
        fitting = [stages[0], *((name, budget.shortened(stage), each) for name, stage, each in stages[1:])]
        metrics |= _refit(runner, fitting, choice, curve | {0: scores[Tuning()]})
        choice = replace(choice, epochs=len(runner.history) - 1)  # fewer where time ran out
        state.held_out = logits[choice][data.indices("val")] if len(data.indices("val")) else None
        state.out_of_fold = logits[choice][learned], data.labels[learned]
    metrics |= {f"fold_{name}": value for name, value in scores[choice].items()}
    return metrics | {"rate_factor": choice.rate, "tuned_epochs": choice.epochs, "alpha": choice.alpha}


def choose_tuning(
    logits: OutOfFoldLogits, labels: np.ndarray, learned: np.ndarray, monitor: str, groups: np.ndarray | None = None
) -> Tuning:
    """Choose the candidate that is best on the images `learned`, or the frozen head if that one is not better by more
    than a standard error, over whole `groups` of these images. `monitor` is `loss` or `accuracy`."""

    def penalties(candidate: Tuning) -> np.ndarray:
        probabilities, true = softmax(logits[candidate][learned].astype(np.float64)), labels[learned]
        if monitor == "accuracy":
            return (probabilities.argmax(axis=1) != true).astype(float)
        return -np.log(np.maximum(probabilities[np.arange(len(true)), true], 1e-15))

    best = min(logits, key=lambda candidate: float(penalties(candidate).mean()))
    return best if is_gain(penalties(Tuning()) - penalties(best), groups) else Tuning()


def _monitor(runner: StageRunner) -> str:
    """Return the score that the run's best epoch is chosen by."""
    chosen = next((each.monitor for each in runner.callbacks.values() if isinstance(each, BestWeights)), "val_loss")
    return chosen.removeprefix("val_")


def _judge_all(runner: StageRunner, stages: Stages, alphas: Sequence[float], budget: EpochBudget) -> OutOfFoldLogits:
    """Run all folds at each rate for which there is time; return the candidates that every fold has judged."""
    data, began = runner.state.data, time.monotonic()
    folds = tuning_folds(data, runner.seed)
    shape = len(data), len(data.class_names)
    complete: OutOfFoldLogits = {}
    spent, diverged = 0.0, math.inf
    for rate in RATES:
        if rate > diverged:
            continue
        started = time.monotonic()
        late = {"late": bool(complete) and started + 1.5 * spent > runner.deadline}  # as long again, and the refit
        if broadcast_from_chief(runner.strategy, late)["late"] > 0:
            break
        judged: OutOfFoldLogits = {}
        for number, held_out in enumerate(folds, 1):
            share = (number / len(folds)) * 4 / 5 if not complete else 1.0
            deadline = began + share * (runner.deadline - began) if math.isfinite(runner.deadline) else math.inf
            if number > 1 and not any(each.epochs for each in judged):
                deadline = began  # no fold judges what another had no time for
            answers, ends = _judge_fold(runner, stages, held_out, rate, alphas, deadline, budget)
            for candidate, rows in answers.items():
                judged.setdefault(candidate, np.full(shape, np.nan, np.float32))[held_out] = rows
            diverged = min(diverged, rate) if ends else diverged
            show_fold(number, len(folds), rate)
        learned = data.indices("train", "val")
        complete = {each: rows for each, rows in judged.items() if not np.isnan(rows[learned]).any()} | complete
        spent = time.monotonic() - started
        if not any(each.epochs for each in complete) and diverged > rate:
            break
    # Equal candidates go by their order: the frozen head, then the stages' own rate.
    return dict(sorted(complete.items(), key=lambda item: (item[0].epochs > 0, RATES.index(item[0].rate))))


def tuning_folds(data: DataModule, seed: int) -> list[np.ndarray]:
    """Divide training and validation images into stratified parts, groups whole: the indices of each. Raises
    `InputError` where a class has too few images, or groups."""
    learned, remedy = data.indices("train", "val"), "or give transfer.choose_by=validation transfer.ensemble=false"
    parts = stratified_parts(
        data.labels[learned],
        FOLDS,
        seed,
        names=data.class_names,
        key="transfer.choose_by=folds",
        few=f"to learn from, and there are {FOLDS} folds; add images of it, {remedy}",
        groups=data.kept_together(learned),
        remedy=f"add images of other groups, {remedy}",
    )
    return [learned[part] for part in parts]


def _judge_fold(
    runner: StageRunner,
    stages: Stages,
    held_out: np.ndarray,
    rate: float,
    alphas: Sequence[float],
    deadline: float,
    budget: EpochBudget,
) -> tuple[OutOfFoldLogits, bool]:
    """Train on all other images than `held_out`, until `deadline`, where the `budget` has an epoch; return each
    candidate's logits for these, and whether training diverged. The classifier is left as it was loaded."""
    state, data = runner.state, runner.state.data
    split_of = np.where(data.split_of == "val", "train", data.split_of)
    split_of[held_out] = "val"
    state.data = replace(data, split_of=split_of)
    judged: OutOfFoldLogits = {}
    fold = replace(runner, callbacks={}, trial=None, deadline=deadline, history=[], best=BestEpoch())

    def loop(**options: Any) -> TrainLoop:
        validate = options["validate"]

        def judge() -> Mapping[str, float]:
            scores, epochs = validate(), 1 + max(each.epochs for each in judged)
            if not math.isfinite(scores["val_loss"]):
                return scores  # with which the loop ends
            judged[Tuning(rate, epochs)] = fold.validated
            tuned = state.trained.now(state.classifier)
            for alpha in (each for each in alphas if each < 1):
                _move_between(state, frozen, tuned, alpha)
                validate()
                judged[Tuning(rate, epochs, alpha)] = fold.validated
            assign_weights(state.classifier, tuned)
            return scores

        training = TrainLoop(**options | {"validate": judge, "save": lambda *_: None})
        if runner.strategy is None:
            budget.measure(training)
        return training

    fold.loops = {name: loop for name, *_ in stages}
    try:
        with silenced(bars=False):
            fold.run_stage(0, *stages[0], last=False)
            frozen = state.trained.now(state.classifier)
            judged[Tuning()] = state.logits("val")
            for number, (name, stage, optimizer) in enumerate(stages[1:], 1):
                if not fold.is_late:
                    own = _at_rate(budget.shortened(stage), optimizer, rate)
                    fold.run_stage(number, name, own, optimizer, last=False)
    except TooSlowError as error:
        log.warning("%s, and each of %d folds needs one: there is no time to fine-tune", error, FOLDS)
    except DivergedError as error:
        log.warning("transfer.%s: at learning rates x %g training diverged in a fold", error.stage, rate)
        return judged, True
    finally:
        _return_to_loaded(runner)
        state.data = data
    return judged, False


def _at_rate(stage: Stage, optimizer: LBFGS | GradientOptimizer, rate: float) -> Stage:
    assert isinstance(optimizer, GradientOptimizer)
    return replace(stage, learning_rate=rate * (stage.learning_rate or optimizer.learning_rate))


def _return_to_loaded(runner: StageRunner) -> None:
    state = runner.state
    state.trained.restore(state.classifier, {})
    state.trained = TrainedWeights()
    state.use_loaded_backbone()
    state.held_out = state.out_of_fold = None
    resolve_plan(state.classifier, 0)


def _refit(runner: StageRunner, stages: Stages, choice: Tuning, curve: Mapping[int, Mapping[str, float]]) -> Metrics:
    """Train on training and validation images as the choice says; `curve` are the mean scores of the folds by epoch,
    which the history shows as those of validation."""
    state, data = runner.state, runner.state.data
    state.data = replace(data, split_of=np.where(data.split_of == "val", "train", data.split_of))
    kept = {k: each for k, each in runner.callbacks.items() if not isinstance(each, BestWeights | EarlyStopping)}
    refit = replace(runner, callbacks=kept, trial=None)
    done = 0

    def loop(**options: Any) -> TrainLoop:
        def look_up() -> Mapping[str, float]:
            nonlocal done
            done += 1
            options["model"].stop_training = done == choice.epochs
            return {f"val_{name}": value for name, value in curve[done].items()}

        return TrainLoop(**options | {"validate": look_up, "save": lambda *_: None})

    refit.loops = {name: loop for name, *_ in stages}
    metrics = refit.run_stage(0, *stages[0], last=False)
    refit.history[0] |= {f"val_{name}": value for name, value in curve[0].items()}
    frozen = state.trained.now(state.classifier)
    for number, (name, stage, optimizer) in enumerate(stages[1:], 1):
        if done < choice.epochs and not (done and refit.is_late):
            metrics |= refit.run_stage(number, name, _at_rate(stage, optimizer, choice.rate), optimizer, last=False)
    tuned = state.trained.now(state.classifier)
    if choice.alpha < 1:
        _move_between(state, frozen, tuned, choice.alpha)
    state.data = data
    last = refit.history[-1]
    return metrics | {"best_stage": last["stage"], "best_epoch": last["epoch"]}


def interpolate_by_validation(runner: StageRunner, frozen: Weights) -> Metrics:
    """Move the classifier to the share of the way from `frozen` to tuned weights at which validation is best."""
    state, monitor = runner.state, _monitor(runner)
    tuned, labels = state.trained.now(state.classifier), state.data.labels[state.data.indices("val")]
    sign = 1 if direction(monitor) == "min" else -1
    values: dict[float, float] = {}
    for alpha in sorted(ALPHAS, reverse=True):  # of equal ones the tuned
        _move_between(state, frozen, tuned, alpha)
        values[alpha] = sign * accuracy_and_loss(state.logits("val"), labels)[monitor]
    alpha = min(values, key=values.__getitem__)
    _move_between(state, frozen, tuned, alpha)
    return {"alpha": alpha}


def _move_between(state: ClassifierState, frozen: Weights, tuned: Weights, share: float) -> None:
    """Put the classifier a share of the way from its weights with a frozen backbone to the tuned ones."""
    assign_weights(state.classifier, interpolate({**state.trained.before, **frozen}, tuned, share))
