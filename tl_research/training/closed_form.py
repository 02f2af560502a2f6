"""Compute heads in closed form, without epochs, from the features of all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from tl_research.features.head_inputs import HeadInputs
from tl_research.metrics.classification import accuracy_and_loss
from tl_research.metrics.probabilities import softmax
from tl_research.models.head import DirectHead, Head, rescaled
from tl_research.training.half_heads import answers_of_halves
from tl_research.training.head_coordinates import part_scales
from tl_research.training.logistic_regression import Choice, Solution, choosing_folds, image_rows, solve
from tl_research.training.optimizer import LBFGS, Optimizer
from tl_research.training.options import TrainOptions
from tl_research.training.stage import Stage

if TYPE_CHECKING:
    import keras

T = TypeVar("T")
ToLogits = Callable[[np.ndarray], Any]
"""Features `(n, d)` -> logits `(n, k)`."""


@dataclass(frozen=True)
class ClosedForm(Generic[T]):
    """A `fitted` head, and the `scores` (`val_...` too, if there are such images) of one fitted on the training images
    alone. `held_out` are the latter's logits for the validation images, where the fitted head saw these too."""

    fitted: T
    scores: dict[str, float]
    held_out: np.ndarray | None


def needs_no_epochs(stage: Stage, head: Head, optimizer: Optimizer) -> bool:
    """Return whether a stage computes its head in closed form."""
    return not stage.trains_backbone and (isinstance(head, DirectHead) or isinstance(optimizer, LBFGS))


def solve_linear(
    inputs: HeadInputs, options: LBFGS, trainer: TrainOptions, seed: int, choice: Choice | None, *, use_val: bool
) -> ClosedForm[Solution]:
    """Solve a linear head to its optimum; `choice` is that of its penalty on train + val, where it is known."""

    def fit(*splits: str) -> tuple[Solution, ToLogits]:
        features, labels = inputs.learned(*splits)
        groups, balance = inputs.groups(*splits), trainer.balance(inputs.data, *splits)
        widths = inputs.features.source.widths
        known = choice if "val" in splits else None
        solution = solve(features, labels, options, seed, inputs.views, groups, widths, balance, known)
        return solution, solution.logits

    return _fitted(inputs, fit, use_val=use_val)


def judge_halves(inputs: HeadInputs, trainer: TrainOptions, l2: float) -> np.ndarray:
    """Return the classes `(2 h, n)` of the test images by heads on halves of train + val, see `answers_of_halves`."""
    splits = "train", "val"
    features, labels = inputs.learned(*splits)
    groups, balance = inputs.groups(*splits), trainer.balance(inputs.data, *splits)
    tests, widths = inputs.plain("test")[0], inputs.features.source.widths
    return answers_of_halves(features, labels, tests, l2, inputs.views, groups, widths, balance)


def fit_direct(inputs: HeadInputs, recipe: DirectHead, *, use_val: bool) -> ClosedForm[keras.Model]:
    """Compute a `DirectHead` from features."""

    def fit(*splits: str) -> tuple[keras.Model, ToLogits]:
        head = fit_direct_head(inputs, recipe, *splits)
        return head, head

    return _fitted(inputs, fit, use_val=use_val)


def fit_direct_head(inputs: HeadInputs, recipe: DirectHead, *splits: str) -> keras.Model:
    """Compute a head from the images of these splits."""
    features, labels = inputs.learned(*splits)
    widths = inputs.features.source.widths
    return fit_scaled(recipe, features, labels, len(inputs.data.class_names), inputs.views, widths)


def fit_scaled(
    recipe: DirectHead, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int, widths: Sequence[int]
) -> keras.Model:
    """Compute a head from features `(n, d)`; with several `widths`, those of each network are first divided by a
    number of their own."""
    if len(widths) == 1:
        return recipe.fit(features, labels, num_classes, views)
    scale = 1 / part_scales(features, widths)
    return rescaled(recipe.fit(features * scale, labels, num_classes, views), scale)


def cross_validate(
    recipe: DirectHead,
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int,
    groups: np.ndarray | None,
    widths: Sequence[int],
) -> Choice:
    """Judge a head on features `(n * views, d)` and labels, in the folds in which `choose_l2` judges linear ones."""
    from sklearn.metrics import log_loss

    num_classes = len(np.unique(labels))
    images, folds = choosing_folds(labels[::views], options, seed, views, groups)
    if not folds:
        return Choice(l2=0.0)
    rows = image_rows(images, views)
    features, (classes, place) = features[rows], np.unique(labels[rows], return_inverse=True)
    logits = np.empty((len(rows), len(classes)))
    for train, held in (tuple(image_rows(part, views) for part in fold) for fold in folds):
        head = fit_scaled(recipe, features[train], place[train], len(classes), views, widths)
        logits[held] = head(features[held], training=False)
    judged = np.sort(np.concatenate([image_rows(held, views) for _, held in folds]))
    losses = {0.0: float(log_loss(place[judged], softmax(logits[judged]), labels=range(len(classes))))}
    whole = len(classes) == num_classes
    return Choice(0.0, losses).of_answers(logits, labels[rows], images, judged, views, whole=whole)


def _fitted(inputs: HeadInputs, fit: Callable[..., tuple[T, ToLogits]], *, use_val: bool) -> ClosedForm[T]:
    """Fit on the training images, score, and with `use_val` fit again on train + val."""
    fitted, to_logits = fit("train")
    scores: dict[str, float] = {}
    judged = {"": inputs.learned("train"), "val_": inputs.plain("val")}
    for prefix, (features, labels) in judged.items():
        if not len(labels):
            return ClosedForm(fitted, scores, None)
        logits = np.asarray(to_logits(features))
        scores |= {f"{prefix}{name}": value for name, value in accuracy_and_loss(logits, labels).items()}
    if not use_val:
        return ClosedForm(fitted, scores, None)
    return ClosedForm(fit("train", "val")[0], scores, held_out=logits)
