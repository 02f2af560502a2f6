"""Linear probe: multinomial logistic regression on features, solved to its optimum, its penalty chosen by
cross-validation.

A linear head trained by epochs would converge to the same with enough of them and the right weight decay (Kornblith et
al. 2019, arXiv 1805.08974, use the same protocol).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tl_research.metrics.probabilities import softmax
from tl_research.training.optimizer import LBFGS

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = np.logspace(2, -4, 13)
"""Penalties to try: half decades around the one where penalty and loss on scaled features are of a size."""

SMALL = 4_000_000

OutOfFold = tuple[np.ndarray, np.ndarray]
"""Logits `(n, k)` of images by heads that did not learn from them, and their labels `(n,)`."""

MOST_FOR_CHOOSING = 5000
"""Examples at most for cross-validation, a stratified sample: the best penalty depends little on their number."""


@dataclass(frozen=True)
class Solution:
    """A solved head: logits = features @ kernel + bias. `log_losses[l2]` is the cross-validated loss of each penalty
    tried, `cv_accuracy` the out-of-fold accuracy at the one chosen, and `out_of_fold` the logits and labels behind it,
    a row an image."""

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    iterations: int
    log_losses: dict[float, float]
    cv_accuracy: float | None
    out_of_fold: OutOfFold | None = None

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
) -> Solution:
    """Fit on features `(n, d)` and labels `(n,)`; every class must occur. Features are centred and divided by one
    number, their root mean variance; both are folded into kernel `(d, k)` and bias `(k,)` of a plain dense layer.

    The rows are `views` of each image, one after the other; cross-validation keeps them together, as it does images of
    one group (`groups`, one for each image).

    One number, not one per feature: a few dozen images estimate the spread of a rarely active feature badly, and
    dividing by it would amplify noise (0.875 against 0.95 test accuracy on 73 photographs).
    """
    from threadpoolctl import threadpool_limits

    mean = features.mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())) or 1.0
    coordinates, basis = _span((features - mean) / scale)
    # On small matrices BLAS threads wait for each other ten times longer than they work.
    with threadpool_limits(1 if coordinates.size < SMALL else None, "blas"):
        choice = Choice(l2=options.l2) if options.l2 else choose_l2(coordinates, labels, options, seed, views, groups)
        model, weights, intercept = _regression(options), 0.0, 0.0
        for l2, share in (choice.shares or {choice.l2: 1.0}).items():
            fitted = _fit(model.set_params(C=1 / (l2 * len(labels))), coordinates, labels)
            weights, intercept = weights + share * fitted[0], intercept + share * fitted[1]
    kernel = (basis @ weights.T) / scale
    return Solution(
        kernel=kernel.astype(np.float32),
        bias=(intercept - mean @ kernel).astype(np.float32),
        l2=choice.l2,
        iterations=int(model.n_iter_.max()),
        log_losses=choice.log_losses,
        cv_accuracy=choice.accuracy,
        out_of_fold=choice.out_of_fold,
    )


def _span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Express features in coordinates of the space they span; return these and its orthonormal basis `(d, r)`. The
    optimum lies in it, and with fewer images than dimensions, the usual case, the problem becomes smaller."""
    n, d = features.shape
    if n >= d:
        return features, np.eye(d)
    basis, coordinates = np.linalg.qr(features.T)  # features = coordinates.T @ basis.T
    return np.ascontiguousarray(coordinates.T), basis


@dataclass(frozen=True)
class Choice:
    """A penalty, and the cross-validated results of those tried; `shares[l2]` is the part of each penalty's head in a
    mean of heads, whose results `accuracy` and `out_of_fold` then are."""

    l2: float
    log_losses: dict[float, float] = field(default_factory=dict)
    accuracy: float | None = None
    out_of_fold: OutOfFold | None = None
    shares: dict[float, float] = field(default_factory=dict)


def choose_l2(
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int = 1,
    groups: np.ndarray | None = None,
) -> Choice:
    """Choose the penalty with the least out-of-fold log loss, not the best accuracy: on a hundred images many are
    equally accurate. Goes from strong to weak, each fit starting from the last, until three in a row were worse."""
    from sklearn.metrics import log_loss
    from sklearn.utils import resample

    if len(labels) > MOST_FOR_CHOOSING:
        images = resample(
            np.arange(len(labels) // views),
            replace=False,
            n_samples=MOST_FOR_CHOOSING // views,
            stratify=labels[::views],
            random_state=seed,
        )
        part = _rows(images, views)
        features, labels = features[part], labels[part]
        groups = None if groups is None else groups[images]
    classes, counts = np.unique(labels[::views], return_counts=True)
    num_classes = len(classes)
    classes, counts = classes[counts > 1], counts[counts > 1]  # a single image cannot be held out
    if len(classes) < 2:
        return Choice(l2=1.0)  # the middle of the range, which little data tends to choose
    usable = np.isin(labels, classes)
    groups = None if groups is None else groups[usable[::views]]
    features, labels = features[usable], labels[usable]
    image_folds = _folds(labels[::views], groups, min(options.folds, int(counts.min())), seed)
    if not image_folds:
        return Choice(l2=1.0)
    folds = [(*(_rows(part, views) for part in fold), _regression(options, tol=1e-4)) for fold in image_folds]
    judged = np.sort(np.concatenate([held_out for _, held_out, _ in folds]))
    losses: dict[float, float] = {}
    kept: dict[float, np.ndarray] = {}
    for l2 in map(float, STRENGTHS):
        logits = np.empty((len(labels), len(classes)))
        for train, held_out, model in folds:
            weights, intercept = _fit(model.set_params(C=1 / (l2 * len(train))), features[train], labels[train])
            logits[held_out] = features[held_out] @ weights.T + intercept
        losses[l2] = float(log_loss(labels[judged], softmax(logits[judged]), labels=classes))
        best = min(losses, key=losses.__getitem__)
        kept = {**kept, l2: logits} if options.average else {best: kept.get(best, logits)}
        if best not in list(losses)[-3:]:
            break
    first_views = judged[judged % views == 0]
    shares = _shares(losses, len(first_views)) if options.average else {best: 1.0}
    logits = sum((share * kept[l2] for l2, share in shares.items()), np.zeros_like(logits))
    accuracy = float(np.mean(classes[logits[judged].argmax(axis=1)] == labels[judged]))
    whole = len(classes) == num_classes  # a class without rows has no logits
    out_of_fold = (logits[first_views], labels[first_views]) if whole else None
    return Choice(best, losses, accuracy, out_of_fold, shares)


def _shares(losses: dict[float, float], count: int) -> dict[float, float]:
    """Divide a mean among penalties by the likelihood of their out-of-fold answers to `count` images (pseudo-BMA,
    Geisser and Eddy 1979): where few images can tell, many have a share. Shares below a hundredth are left out."""
    lowest = min(losses.values())
    likely = {l2: float(np.exp(count * (lowest - loss))) for l2, loss in losses.items()}
    kept = {l2: value for l2, value in likely.items() if value >= 0.01 * sum(likely.values())}
    return {l2: value / sum(kept.values()) for l2, value in kept.items()}


def _folds(labels: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
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


def _rows(images: np.ndarray, views: int) -> np.ndarray:
    """Give the row indices of some images, `views` of each, one after the other."""
    return (images[:, None] * views + np.arange(views)).ravel()


def _regression(options: LBFGS, tol: float = 1e-6) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=options.max_iterations, tol=tol, warm_start=True)


def _fit(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit weights `(k, d)` and intercepts `(k,)`, also of two classes, where scikit-learn returns one difference."""
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning

    # Over a hundred small fits, checking the same finite numbers would take as long as fitting.
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the user sets max_iterations; the run records them
        model.fit(features, labels)
    weights, intercept = model.coef_, model.intercept_
    if len(weights) == 1:
        return np.vstack([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    return weights, intercept
