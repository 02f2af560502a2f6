"""Heads on halves of the training images."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.test_logistic_regression import blobs
from tl_research.training.half_heads import DIVISIONS, answers_of_halves


def test_halves_answer_as_their_own_images_say() -> None:
    """Of an image whose twin is in a half, the head of that half knows the label and the other one does not."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(24, 60)).astype(np.float32), np.arange(24) % 3
    right = answers_of_halves(features, labels, features, 1e-3) == labels
    assert right.shape == (2 * DIVISIONS, 24)
    known = right[0::2] | right[1::2]
    assert known.all()
    assert right.mean() < 0.85


def test_groups_stay_whole_and_views_together() -> None:
    features, labels = blobs(24, 60, 2, spread=3.0)
    groups = np.arange(24) // 2 % 6
    plain = answers_of_halves(features, labels, features, 0.1, groups=groups)
    twice = answers_of_halves(features.repeat(2, axis=0), labels.repeat(2), features, 0.1, 2, groups)
    assert len(plain)
    assert np.mean(plain == twice) > 0.99


@pytest.mark.parametrize(("labels", "groups"), [([0, 0, 0, 1], None), ([0, 0, 1, 1], [0, 1, 2, 2])])
def test_a_class_that_cannot_be_divided_gives_no_answers(labels: list[int], groups: list[int] | None) -> None:
    features = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    of_images = None if groups is None else np.array(groups)
    assert answers_of_halves(features, np.array(labels), features[:2], 1.0, groups=of_images).shape == (0, 2)
