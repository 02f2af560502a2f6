"""Ask heads that are solved on parts of the images about the others: how accuracy grows with the number of images, and
how likely each label is."""

from __future__ import annotations

import numpy as np

from tl_research.metrics.probabilities import softmax
from tl_research.training.head_coordinates import coordinates_of
from tl_research.training.logistic_regression import (
    MOST_FOR_CHOOSING,
    SMALL,
    choose_l2,
    choosing_images,
    logits_of_others,
    stratified_folds,
)
from tl_research.training.optimizer import LBFGS

REPEATS = 4
FOLDS = 5
STEPS = 6
LEAST = 4  # images of a class, on average, that the first head learns from
MOST = 2000  # images at most


def measure_curve(
    features: np.ndarray, labels: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean images of a class, ascending `(s,)`, and how often heads of each size answered an image that they did
    not learn from correctly, `(n, s)`; None for too few images. Groups are not divided."""
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[:MOST]
    coordinates, labels = coordinates_of(features[chosen]), labels[chosen]
    groups = chosen if groups is None else groups[chosen]
    classes = np.unique(labels)
    if len(classes) < 2 or np.bincount(labels)[classes].min() < 2 * FOLDS:
        return None
    largest = len(labels) / len(classes) * (FOLDS - 1) / FOLDS
    sizes = np.unique(np.geomspace(max(LEAST, largest / 16), largest, STEPS).round())
    correct = np.zeros((len(labels), len(sizes)))
    with threadpool_limits(1 if coordinates.size < SMALL else None, "blas"):
        l2 = choose_l2(coordinates, labels, LBFGS(), seed, groups=groups).l2
        for repeat in range(REPEATS):
            folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + repeat)
            for train, held in folds.split(coordinates, labels, groups):
                order = rng.permutation(train)
                for step, size in enumerate(sizes.tolist()):
                    part = _first_of_each(order, labels, classes, size / largest)
                    logits = logits_of_others(coordinates[part], labels[part], coordinates[held], l2)
                    correct[held, step] += np.unique(labels[part])[logits.argmax(axis=1)] == labels[held]
    return sizes, correct / REPEATS


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, options: LBFGS, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Compute the probabilities `(n, k)` of images by heads that learned from neither them nor images of their group;
    NaN for images that cannot be held out, as the only one of a class. A head learns from `MOST_FOR_CHOOSING` at most.
    """
    from threadpoolctl import threadpool_limits

    features = coordinates_of(features)
    probabilities = np.full((len(labels), int(labels.max()) + 1), np.nan)
    usable = choosing_images(labels, len(labels), seed, groups)
    counts = np.unique(labels[usable], return_counts=True)[1]
    if len(counts) < 2:
        return probabilities
    with threadpool_limits(1 if features.size < SMALL else None, "blas"):
        l2 = choose_l2(features, labels, options, seed, groups=groups).l2
        within = None if groups is None else groups[usable]
        for train, held in stratified_folds(labels[usable], within, min(options.folds, int(counts.min())), seed):
            chosen = usable[np.random.default_rng(seed).permutation(train)[:MOST_FOR_CHOOSING]]
            known = np.unique(labels[chosen])
            probabilities[usable[held]] = 0.0
            logits = logits_of_others(features[chosen], labels[chosen], features[usable[held]], l2)
            probabilities[np.ix_(usable[held], known)] = softmax(logits)
    return probabilities


def _first_of_each(order: np.ndarray, labels: np.ndarray, classes: np.ndarray, share: float) -> np.ndarray:
    """Return the first examples of each class in an order, a share of them, at least one."""
    members = [order[labels[order] == label] for label in classes]
    return np.concatenate([each[: max(round(share * len(each)), 1)] for each in members])
