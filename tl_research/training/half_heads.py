"""Heads solved on halves of the training images: how far two of them are apart is the chance of these images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl_research.training.class_balance import UNIFORM, ClassBalance
from tl_research.training.head_coordinates import mean_feature, part_scales, span
from tl_research.training.logistic_regression import (
    MOST_FOR_CHOOSING,
    SMALL,
    choosing_images,
    image_rows,
    logits_of_others,
    stratified_folds,
)

DIVISIONS = 10
"""Times that the images are divided in halves."""


def answers_of_halves(
    features: np.ndarray,
    labels: np.ndarray,
    tests: np.ndarray,
    l2: float,
    views: int = 1,
    groups: np.ndarray | None = None,
    widths: Sequence[int] = (),
    balance: ClassBalance = UNIFORM,
) -> np.ndarray:
    """Solve heads as `solve` does, with one penalty, on stratified halves of the images, with whole groups; return the
    classes `(2 h, n)` that they give features `tests` `(n, d)`. Two rows, one after the other, are of one division: the
    heads of its halves have seen no image in common.

    There are no rows where a class cannot be divided. Of more than `MOST_FOR_CHOOSING` images so many are divided.
    """
    from threadpoolctl import threadpool_limits

    own, classes = labels[::views], np.unique(labels)
    images = choosing_images(own, MOST_FOR_CHOOSING, seed=0)
    answers: list[np.ndarray] = []
    if len(classes) == len(np.unique(own[images])) > 1:
        sample, offsets = balance.of_images(labels), 0.0 if balance.offsets is None else balance.offsets
        within = None if groups is None else groups[images]
        mean, scale = mean_feature(features, sample), part_scales(features, widths or [features.shape[1]], sample)
        coordinates, basis = span((features - mean) / scale)
        coordinates, others = coordinates.astype(np.float32), ((tests - mean) / scale) @ basis
        with threadpool_limits(1 if coordinates.size < SMALL else None, "blas"):
            for halves in (stratified_folds(own[images], within, 2, number) for number in range(DIVISIONS)):
                for rows in (image_rows(images[half], views) for half, _ in halves if len(halves) == 2):
                    weights = None if sample is None else sample[rows]
                    logits = logits_of_others(coordinates[rows], labels[rows], others, l2, weights)
                    answers.append((logits - offsets).argmax(axis=1))
    return np.array(answers, int).reshape(len(answers), len(tests))
