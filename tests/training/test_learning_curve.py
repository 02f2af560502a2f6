"""Test that heads are asked about images that they did not learn from, and learn more from more images."""

from __future__ import annotations

import numpy as np

from tl_research.training.learning_curve import measure_curve, out_of_fold_probabilities
from tl_research.training.optimizer import LBFGS


def blobs(count: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, 12))
    features[:, 0] += distance * labels
    return features.astype(np.float32), labels


def test_probabilities_of_an_image_know_nothing_of_its_copies() -> None:
    features, labels = blobs(40, 0.0)
    features, labels = np.repeat(features, 2, axis=0), np.repeat(np.random.default_rng(1).permutation(labels), 2)
    groups = np.repeat(np.arange(40), 2)
    apart = out_of_fold_probabilities(features, labels, LBFGS(l2=1e-3), 0)
    together = out_of_fold_probabilities(features, labels, LBFGS(l2=1e-3), 0, groups)
    assert np.mean(apart.argmax(axis=1) == labels) > np.mean(together.argmax(axis=1) == labels) + 0.15
    assert np.allclose(together.sum(axis=1), 1)


def test_the_only_image_of_a_class_is_not_judged() -> None:
    features, labels = blobs(20, 3.0)
    labels[7] = 2
    judged = out_of_fold_probabilities(features, labels, LBFGS(), 0)
    assert np.flatnonzero(np.isnan(judged).any(axis=1)).tolist() == [7]


def test_more_images_bring_more_and_few_bring_no_curve() -> None:
    found = measure_curve(*blobs(120, 2.0), 0)
    assert found is not None
    sizes, correct = found
    assert correct.shape == (120, len(sizes))
    assert correct[:, -1].mean() > correct[:, 0].mean()
    assert measure_curve(*blobs(12, 2.0), 0) is None
