"""Linear probe: multinomial logistic regression on features, solved to its optimum, its penalty chosen by
cross-validation.

A linear head trained by epochs would converge to the same with enough of them and the right weight decay (Kornblith et
al. 2019, arXiv 1805.08974, use the same protocol).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tl_research.metrics.probabilities import softmax
from tl_research.training.class_balance import UNIFORM, ClassBalance
from tl_research.training.head_coordinates import mean_feature, part_scales, span
from tl_research.training.optimizer import LBFGS

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = np.logspace(2, -4, 13)
"""Penalties to try: half decades around the one where penalty and loss on scaled features are of a size."""

SMALL = 4_000_000

OutOfFold = tuple[np.ndarray, np.ndarray]
"""Logits `(n, k)` of images by heads that did not learn from them, and their labels `(n,)`."""

Fold = tuple[np.ndarray, np.ndarray]
"""Indices of images to fit on and to hold out."""

NO_LOSSES = np.empty(0, int), np.empty(0)

MOST_FOR_CHOOSING = 5000
"""Examples at most for cross-validation, a stratified sample: the best penalty depends little on their number."""


@dataclass(frozen=True)
class Solution:
    """A solved head: logits = features @ kernel + bias. `log_losses[l2]` is the cross-validated loss of each penalty
    tried, `cv_accuracy` and `cv_loss` are of the out-of-fold answers at the one chosen, or by the mean of heads, and
    `out_of_fold` the logits and labels behind them, a row an image. `image_losses` are the numbers of these images
    among those given and the log loss of each, by heads that did not learn from it; empty where none could be held out.
    """

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    iterations: int
    log_losses: dict[float, float]
    cv_accuracy: float | None
    cv_loss: float
    out_of_fold: OutOfFold | None = None
    image_losses: tuple[np.ndarray, np.ndarray] = NO_LOSSES

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Compute the logits `(n, k)` of features `(n, d)`."""
        return features @ self.kernel + self.bias


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int = 1,
    groups: np.ndarray | None = None,
    widths: Sequence[int] = (),
    balance: ClassBalance = UNIFORM,
    choice: Choice | None = None,
) -> Solution:
    """Fit on features `(n, d)` and labels `(n,)`; every class must occur. Features are centred and divided by one
    number, their root mean variance; both are folded into kernel `(d, k)` and bias `(k,)` of a plain dense layer. With
    `widths`, the numbers of features of several networks side by side, those of each have a number of their own.

    The rows are `views` of each image, one after the other; cross-validation keeps them together, as it does images of
    one group (`groups`, one for each image).

    `balance` weights the images, for means and scales as well, as if each were there so often. Its offsets need no fit
    of their own: the bias, which has no penalty, takes them up. `choice` is what `choose_l2` said of these images, if
    that is known.

    One number, not one per feature: a few dozen images estimate the spread of a rarely active feature badly, and
    dividing by it would amplify noise (0.875 against 0.95 test accuracy on 73 photographs).
    """
    from threadpoolctl import threadpool_limits

    sample = balance.of_images(labels)
    mean, scale = mean_feature(features, sample), part_scales(features, widths or [features.shape[1]], sample)
    coordinates, basis = span((features - mean) / scale)
    # On small matrices BLAS threads wait for each other ten times longer than they work.
    with threadpool_limits(1 if coordinates.size < SMALL else None, "blas"):
        if options.l2:
            choice = Choice(l2=options.l2)
        elif choice is None:
            choice = choose_l2(coordinates, labels, options, seed, views, groups, balance)
        model, shares = _regression(options), choice.shares or {choice.l2: 1.0}
        fits = [_fit(model, l2, coordinates, labels, sample) for l2 in shares]
        weights, intercept = (np.average(part, axis=0, weights=[*shares.values()]) for part in zip(*fits, strict=True))
    intercept = intercept if balance.offsets is None else intercept - balance.offsets
    kernel = (basis @ weights.T) / scale[:, None]
    return Solution(
        kernel=kernel.astype(np.float32),
        bias=(intercept - mean @ kernel).astype(np.float32),
        l2=choice.l2,
        iterations=int(model.n_iter_.max()),
        log_losses=choice.log_losses,
        cv_accuracy=choice.accuracy,
        cv_loss=choice.log_loss,
        out_of_fold=choice.out_of_fold,
        image_losses=choice.image_losses,
    )


@dataclass(frozen=True)
class Choice:
    """A penalty, and the cross-validated results of those tried; `shares[l2]` is the part of each penalty's head in a
    mean of heads, whose results `accuracy` and `out_of_fold` then are."""

    l2: float
    log_losses: dict[float, float] = field(default_factory=dict)
    accuracy: float | None = None
    out_of_fold: OutOfFold | None = None
    image_losses: tuple[np.ndarray, np.ndarray] = NO_LOSSES
    shares: dict[float, float] = field(default_factory=dict)

    @property
    def log_loss(self) -> float:
        """The log loss of what `out_of_fold` says; infinite where no image could be held out."""
        of_mean = len(self.shares) > 1
        return float(self.image_losses[1].mean()) if of_mean else min(self.log_losses.values(), default=math.inf)

    def of_answers(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        images: np.ndarray,
        judged: np.ndarray,
        views: int,
        balance: ClassBalance = UNIFORM,
        *,
        whole: bool,
    ) -> Choice:
        """Add the results of out-of-fold logits `(n * views, k)`, a column for each class among `labels`, to `images`,
        of which the rows `judged` were held out. `balance` counts in the losses of images, whose mean is the log loss.
        `whole`: there is a column for each class that there is."""
        classes, first_views = np.unique(labels), judged[judged % views == 0]
        accuracy = float(np.mean(classes[logits[judged].argmax(axis=1)] == labels[judged]))
        offsets = 0.0 if balance.offsets is None else balance.offsets[classes]
        place, sample = np.searchsorted(classes, labels[judged]), balance.of_images(labels[judged])
        own = softmax(logits[judged] + offsets)[np.arange(len(judged)), place]
        losses = -np.log(np.maximum(own, np.finfo(float).eps)) * (1.0 if sample is None else sample / sample.mean())
        image_losses = images[first_views // views], losses.reshape(-1, views).mean(axis=1)
        out_of_fold = (logits[first_views], labels[first_views]) if whole else None
        return replace(self, accuracy=accuracy, out_of_fold=out_of_fold, image_losses=image_losses)


def choose_l2(
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int = 1,
    groups: np.ndarray | None = None,
    balance: ClassBalance = UNIFORM,
    strengths: Sequence[float] | np.ndarray = STRENGTHS,
    patience: int = 3,
) -> Choice:
    """Choose the penalty with the least out-of-fold log loss, not the best accuracy: on a hundred images many are
    equally accurate. Goes through `strengths`, from strong to weak, each fit starting from the last, until `patience`
    in a row were worse. `balance` counts in the loss, too."""
    from sklearn.metrics import log_loss

    num_classes = len(np.unique(labels))
    images, image_folds = choosing_folds(labels[::views], options, seed, views, groups)
    if not image_folds:
        return Choice(l2=1.0)  # the middle of the range, which little data tends to choose
    rows = image_rows(images, views)
    features, labels = features[rows], labels[rows]
    classes = np.unique(labels)
    folds = [(*(image_rows(part, views) for part in fold), _regression(options, tol=1e-4)) for fold in image_folds]
    judged = np.sort(np.concatenate([held_out for _, held_out, _ in folds]))
    sample = balance.of_images(labels)
    weights_judged = None if sample is None else sample[judged]
    offsets = 0.0 if balance.offsets is None else balance.offsets[classes]
    losses: dict[float, float] = {}
    kept: dict[float, np.ndarray] = {}
    for l2 in map(float, strengths):
        logits = np.empty((len(labels), len(classes)))
        for train, held_out, model in folds:
            own_sample = None if sample is None else sample[train]
            weights, intercept = _fit(model, l2, features[train], labels[train], own_sample)
            logits[held_out] = features[held_out] @ weights.T + intercept
        probabilities = softmax(logits[judged])
        losses[l2] = float(log_loss(labels[judged], probabilities, labels=classes, sample_weight=weights_judged))
        logits -= offsets  # the loss above has added them
        best = min(losses, key=losses.__getitem__)
        kept = {**kept, l2: logits} if options.average else {best: kept.get(best, logits)}
        if best not in list(losses)[-patience:]:
            break
    shares = _shares(losses, len(judged) // views) if options.average else {best: 1.0}
    logits = sum((share * kept[l2] for l2, share in shares.items()), np.zeros_like(logits))
    whole = len(classes) == num_classes  # a class without rows has no logits
    return Choice(best, losses, shares=shares).of_answers(logits, labels, images, judged, views, balance, whole=whole)


def choosing_folds(
    labels: np.ndarray, options: LBFGS, seed: int, views: int, groups: np.ndarray | None
) -> tuple[np.ndarray, list[Fold]]:
    """Choose images to judge heads by, of all whose `labels` `(n,)` are given, and folds of them: a stratified sample
    where there are many. There are no folds where none can be held out."""
    images = choosing_images(labels, MOST_FOR_CHOOSING // views, seed, groups)
    classes, counts = np.unique(labels[images], return_counts=True)
    if len(classes) < 2:
        return images, []
    within = None if groups is None else groups[images]
    return images, stratified_folds(labels[images], within, min(options.folds, int(counts.min())), seed)


def choosing_images(labels: np.ndarray, most: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Choose the images to choose a penalty by: a stratified sample of at most `most` if there are more, without those
    that are alone in their class, or are all of it in one group, which cannot be held out."""
    from sklearn.utils import resample

    images = np.arange(len(labels))
    if len(labels) > most:
        images = resample(images, replace=False, n_samples=most, stratify=labels, random_state=seed)
    units = images if groups is None else np.unique(groups[images], return_inverse=True)[1]
    classes, counts = np.unique(np.unique([labels[images], units], axis=1)[0], return_counts=True)
    return images[np.isin(labels[images], classes[counts > 1])]


def logits_of_others(
    coordinates: np.ndarray, labels: np.ndarray, others: np.ndarray, l2: float, sample: np.ndarray | None = None
) -> np.ndarray:
    """Fit a head with one penalty on `coordinates` `(n, r)`, weighted by `sample` `(n,)` if given; return its logits
    for `others` `(m, r)`, a column for each class that occurs."""
    weights, intercept = _fit(_regression(LBFGS(), tol=1e-4), l2, coordinates, labels, sample)
    return others @ weights.T + intercept


def _shares(losses: dict[float, float], count: int) -> dict[float, float]:
    """Divide a mean among penalties by the likelihood of their out-of-fold answers to `count` images (pseudo-BMA,
    Geisser and Eddy 1979): where few images can tell, many have a share. Shares below a hundredth are left out."""
    lowest = min(losses.values())
    likely = {l2: float(np.exp(count * (lowest - loss))) for l2, loss in losses.items()}
    kept = {l2: value for l2, value in likely.items() if value >= 0.01 * sum(likely.values())}
    return {l2: value / sum(kept.values()) for l2, value in kept.items()}


def stratified_folds(labels: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[Fold]:
    """Make stratified folds: indices to fit on and to hold out; with groups only those that fit on every class."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
    classes = np.unique(labels)
    count = min(count, *(len(np.unique(groups[labels == label])) for label in classes))
    if count < 2:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [(train, test) for train, test in folds if len(np.unique(labels[train])) == len(classes) and len(test)]


def image_rows(images: np.ndarray, views: int) -> np.ndarray:
    """Give the row indices of some images, `views` of each, one after the other."""
    return (images[:, None] * views + np.arange(views)).ravel()


def _regression(options: LBFGS, tol: float = 1e-6) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=options.max_iterations, tol=tol, warm_start=True)


def _fit(
    model: LogisticRegression, l2: float, features: np.ndarray, labels: np.ndarray, sample: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Fit weights `(k, d)` and intercepts `(k,)`, also of two classes, where scikit-learn returns one difference."""
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning

    # Over a hundred small fits, checking the same finite numbers would take as long as fitting.
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the user sets max_iterations; the run records them
        model.set_params(C=1 / (l2 * (len(labels) if sample is None else sample.sum())))
        model.fit(features, labels, sample)
    weights, intercept = model.coef_, model.intercept_
    if len(weights) == 1:
        return np.vstack([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    return weights, intercept
