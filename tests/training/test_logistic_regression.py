"""The linear probe reaches its optimum, and cross-validation chooses its penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from tl_research.metrics.classification import classification_metrics
from tl_research.metrics.probabilities import softmax
from tl_research.training.class_balance import class_balance
from tl_research.training.learning_curve import out_of_fold_probabilities
from tl_research.training.logistic_regression import Choice, choose_l2, solve
from tl_research.training.optimizer import LBFGS


def blobs(n: int, d: int, k: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centres = rng.normal(size=(k, d))
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


@settings(deadline=None, max_examples=15)
@given(n=st.integers(12, 60), d=st.integers(2, 80), k=st.integers(2, 4), l2=st.floats(1e-3, 10))
def test_the_gradient_is_zero_at_the_solution(n: int, d: int, k: int, l2: float) -> None:
    features, labels = blobs(n, d, k)
    solution = solve(features, labels, LBFGS(l2=l2), seed=0)
    scale = np.sqrt(features.var(axis=0, dtype=np.float64).mean())
    centred = (features - features.mean(axis=0, dtype=np.float64)) / scale
    kernel = solution.kernel.astype(np.float64) * scale
    residual = softmax(features @ solution.kernel.astype(np.float64) + solution.bias) - np.eye(k)[labels]
    # scikit-learn's two-class problem has one weight vector, the difference of the two logits: half the penalty each.
    penalty = l2 * kernel * (2 if k == 2 else 1)
    gradient = centred.T @ residual / n + penalty
    assert np.abs(gradient).max() < 1e-3


def test_the_mean_over_penalties_is_a_mean_of_heads() -> None:
    features, labels = blobs(45, 60, 3, spread=3.0)
    mean = solve(features, labels, LBFGS(average=True), seed=0)
    losses = np.array(list(mean.log_losses.values()))
    likely = np.exp(45 * (losses.min() - losses))
    likely[likely < 0.01 * likely.sum()] = 0
    assert sum(likely > 0) > 2
    heads = [solve(features, labels, LBFGS(l2=l2), seed=0).kernel for l2 in mean.log_losses]
    expected = np.tensordot(likely / likely.sum(), heads, 1)
    np.testing.assert_allclose(mean.kernel, expected, atol=1e-3 * np.abs(expected).max())
    assert mean.out_of_fold is not None
    assert mean.cv_accuracy == np.mean(mean.out_of_fold[0].argmax(axis=1) == labels)
    assert mean.cv_loss == pytest.approx(log_loss(labels, softmax(mean.out_of_fold[0])))


def test_a_sure_and_wrong_answer_weighs_the_same_in_every_loss() -> None:
    labels, logits = np.array([0, 1]), np.array([[0.0, 900.0], [0.0, 900.0]])
    found = Choice(1.0).of_answers(logits, labels, np.arange(2), np.arange(2), 1, whole=True)
    assert found.image_losses[1].mean() == pytest.approx(log_loss(labels, softmax(logits)))


def test_one_penalty_leaves_nothing_to_average() -> None:
    with pytest.raises(ValueError, match="average=true is a mean over penalties, and l2 gives one"):
        LBFGS(average=True, l2=1.0)


def test_weak_signal_leads_to_a_strong_penalty() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(80, 200)).astype(np.float32)
    clear, labels = blobs(80, 200, 2, spread=0.3)
    assert solve(noise, labels, LBFGS(), 0).l2 > solve(clear, labels, LBFGS(), 0).l2


def test_equal_seeds_give_equal_bits_at_any_scale() -> None:
    features, labels = blobs(60, 100, 3)
    first, again = (solve(features, labels, LBFGS(), seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.kernel, again.kernel)
    scaled = solve(features * 8, labels, LBFGS(), seed=1)
    assert scaled.l2 == first.l2
    np.testing.assert_allclose(scaled.kernel * 8, first.kernel, rtol=1e-3, atol=1e-5)


def test_cross_validated_accuracy_on_noise_is_near_chance() -> None:
    rng = np.random.default_rng(0)
    solution = solve(rng.normal(size=(200, 300)).astype(np.float32), np.arange(200) % 2, LBFGS(), 0)
    assert solution.cv_accuracy is not None
    assert 0.35 < solution.cv_accuracy < 0.65


def test_a_class_of_one_example_prevents_cross_validation() -> None:
    features, labels = blobs(7, 5, 2)
    labels = np.array([0] * 6 + [1])
    assert solve(features, labels, LBFGS(), 0).cv_accuracy is None


def test_metrics_of_known_logits() -> None:
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    metrics = classification_metrics(logits, np.array([0, 0, 1, 1]))
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics["auroc"] == pytest.approx(0.75)
    assert metrics["balanced_accuracy"] == 0.75
    assert metrics["auprc"] == pytest.approx((2 / 3 + 0.75) / 2)
    assert metrics["loss"] == pytest.approx((3 * np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 4)
    assert metrics["accuracy_low"] == pytest.approx(0.3006, abs=1e-3)  # Wilson's interval for 3 of 4
    assert metrics["accuracy_high"] == pytest.approx(0.9544, abs=1e-3)
    assert not {"auroc", "auprc"} & classification_metrics(logits[:2], np.array([0, 0])).keys()


def test_cross_validation_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    labels = groups % 2
    # Groups have directions of their own, classes none: only a group that was trained on can be predicted.
    features = rng.normal(size=(20, 64))[groups] + 0.01 * rng.normal(size=(120, 64))
    together = solve(features, labels, LBFGS(), seed=0, groups=groups)
    apart = solve(features, labels, LBFGS(), seed=0)
    assert apart.cv_accuracy == 1.0
    assert together.cv_accuracy is not None
    assert together.cv_accuracy < 0.8


def test_one_group_per_class_prevents_cross_validation() -> None:
    labels = np.repeat([0, 1], 10)
    features = np.random.default_rng(0).normal(size=(20, 4))
    assert solve(features, labels, LBFGS(), seed=0, groups=labels).cv_accuracy is None


def test_a_class_of_one_group_alone_is_not_held_out() -> None:
    features, labels = blobs(30, 4, 3)
    groups = np.where(labels == 2, 99, np.arange(30))
    numbers = solve(features, labels, LBFGS(), seed=0, groups=groups).image_losses[0]
    assert numbers.tolist() == np.flatnonzero(labels < 2).tolist()
    judged = np.isfinite(out_of_fold_probabilities(features, labels, LBFGS(), 0, groups)).all(axis=1)
    assert judged.tolist() == (labels < 2).tolist()


@pytest.mark.parametrize(
    ("weights", "adjustment", "views"), [(None, 0.0, 2), ("balanced", 0.0, 1), (None, 1.0, 1), ("balanced", 0.5, 2)]
)
def test_the_losses_of_images_average_to_the_log_loss(weights: Any, adjustment: float, views: int) -> None:
    """They are what candidates are compared by, so they are of the loss by which a penalty is chosen."""
    features, labels = blobs(60, 4, 3, spread=2.0)
    kept = np.flatnonzero((labels > 0) | (np.arange(60) < 20)).repeat(views)
    rows = features[kept] + np.random.default_rng(1).normal(size=(len(kept), 4))
    balance = class_balance(weights, adjustment, labels[kept], ["a", "b", "c"])
    choice = choose_l2(rows, labels[kept], LBFGS(), 0, views, balance=balance, strengths=[0.1])
    assert choice.image_losses[1].mean() == pytest.approx(choice.log_losses[choice.l2], rel=1e-6)
