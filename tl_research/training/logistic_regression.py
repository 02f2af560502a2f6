"""The linear probe: multinomial logistic regression on features, solved to its optimum, its penalty by
cross-validation.

On frozen features this is what a linear head trained by epochs would reach if it were given the time and the right
weight decay (Kornblith et al. 2019, arXiv 1805.08974, use the same protocol).
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

# Strengths tried: half decades around the one where the penalty and the loss on scaled features are of a size.
STRENGTHS = np.logspace(2, -4, 13)


SMALL = 4_000_000

# Cross-validation beyond this many examples runs on a stratified part: the penalty beside a mean loss moves slowly with
# their number, and the time would not.
MOST_FOR_CHOOSING = 5000


@dataclass(frozen=True)
class Solution:
    """A solved head: logits = features @ kernel + bias. `log_losses[l2]` is the cross-validated loss per strength
    tried, `cv_accuracy` the accuracy of the out-of-fold answers at the strength chosen."""

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    iterations: int
    log_losses: dict[float, float]
    cv_accuracy: float | None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Answers to features `(n, d)`: `(n, k)`."""
        return features @ self.kernel + self.bias


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int = 1,
    groups: np.ndarray | None = None,
) -> Solution:
    """Fits on features `(n, d)` and labels `(n,)`; every class must occur. Features are centred and divided by one
    number, their root mean variance; that is folded into kernel `(d, k)` and bias `(k,)`, a plain dense layer's.

    With `views` the rows are so many of each image, one after the other, and cross-validation keeps them together, as
    it does images of one group (`groups`, one for each image).

    One number, not one per feature: a few dozen images tell little of a rarely active feature's spread, and dividing by
    it would make noise as loud as the rest (0.875 against 0.95 test accuracy on 73 photographs).
    """
    from threadpoolctl import threadpool_limits

    mean = features.mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())) or 1.0
    coordinates, basis = _span((features - mean) / scale)
    # On small matrices the threads of a BLAS wait for each other ten times longer than they work.
    with threadpool_limits(1 if coordinates.size < SMALL else None, "blas"):
        choice = Choice(l2=options.l2) if options.l2 else choose_l2(coordinates, labels, options, seed, views, groups)
        model = _regression(options).set_params(C=1 / (choice.l2 * len(labels)))
        weights, intercept = _fit(model, coordinates, labels)
    kernel = (basis @ weights.T) / scale
    return Solution(
        kernel=kernel.astype(np.float32),
        bias=(intercept - mean @ kernel).astype(np.float32),
        l2=choice.l2,
        iterations=int(model.n_iter_.max()),
        log_losses=choice.log_losses,
        cv_accuracy=choice.accuracy,
    )


def _span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features in coordinates of the space they span, and its orthonormal basis `(d, r)`. The optimum lies in that
    space, and with fewer images than dimensions, the usual case, the problem shrinks to their number."""
    n, d = features.shape
    if n >= d:
        return features, np.eye(d)
    basis, coordinates = np.linalg.qr(features.T)  # features = coordinates.T @ basis.T
    return np.ascontiguousarray(coordinates.T), basis


@dataclass(frozen=True)
class Choice:
    """A penalty, and what cross-validation said of those tried."""

    l2: float
    log_losses: dict[float, float] = field(default_factory=dict)
    accuracy: float | None = None


def choose_l2(
    features: np.ndarray,
    labels: np.ndarray,
    options: LBFGS,
    seed: int,
    views: int = 1,
    groups: np.ndarray | None = None,
) -> Choice:
    """The strength with the least log loss of out-of-fold answers. The loss decides, not the accuracy: with a hundred
    images many strengths are equally accurate, few are equally sure. Goes from strong to weak, each fit starting from
    the last, and ends when three in a row were worse."""
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
    classes, counts = classes[counts > 1], counts[counts > 1]  # of one image nothing can be held out
    if len(classes) < 2:
        return Choice(l2=1.0)  # the middle of the range is what little data tends to choose
    judged = np.isin(labels, classes)
    groups = None if groups is None else groups[judged[::views]]
    features, labels = features[judged], labels[judged]
    found = _folds(labels[::views], groups, min(options.folds, int(counts.min())), seed)
    if not found:
        return Choice(l2=1.0)
    folds = [(*(_rows(part, views) for part in fold), _regression(options, tol=1e-4)) for fold in found]
    told = np.sort(np.concatenate([held for _, held, _ in folds]))
    losses: dict[float, float] = {}
    accuracies: dict[float, float] = {}
    for l2 in map(float, STRENGTHS):
        logits = np.empty((len(labels), len(classes)))
        for train, held, model in folds:
            weights, intercept = _fit(model.set_params(C=1 / (l2 * len(train))), features[train], labels[train])
            logits[held] = features[held] @ weights.T + intercept
        losses[l2] = float(log_loss(labels[told], softmax(logits[told]), labels=classes))
        accuracies[l2] = float(np.mean(classes[logits[told].argmax(axis=1)] == labels[told]))
        if min(losses, key=losses.__getitem__) not in list(losses)[-3:]:
            break
    best = min(losses, key=losses.__getitem__)
    return Choice(best, losses, accuracies[best])


def _folds(labels: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices to fit on and to hold out, stratified; with groups only the folds that leave images of every class."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
    classes = np.unique(labels)
    count = min(count, *(len(np.unique(groups[labels == label])) for label in classes))
    if count < 2:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [(rest, held) for rest, held in folds if len(np.unique(labels[rest])) == len(classes) and len(held)]


def _rows(images: np.ndarray, views: int) -> np.ndarray:
    """Indices of the rows of some images, `views` of each, one after the other."""
    return (images[:, None] * views + np.arange(views)).ravel()


def _regression(options: LBFGS, tol: float = 1e-6) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=options.max_iterations, tol=tol, warm_start=True)


def _fit(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(k, d)` and intercepts `(k,)`, also where scikit-learn gives one difference of two logits."""
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning

    # A hundred small fits would spend as long on looking at the same finite numbers again.
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iterations is the user's to set; the run records them
        model.fit(features, labels)
    weights, intercept = model.coef_, model.intercept_
    if len(weights) == 1:
        return np.vstack([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    return weights, intercept
