"""Classes of different sizes count as the weights and the adjustment of the loss say, in all kinds of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import draw_tree
from tests.training.test_logistic_regression import blobs
from tl_research import InputError, compose
from tl_research.training.class_balance import ClassBalance, class_balance
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=50).map(np.array)
NAMES = ["a", "b", "c", "d"]


@given(
    labels=CLASSES, weights=st.one_of(st.just("balanced"), st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 9)))
)
def test_weights_are_one_on_average(labels: np.ndarray, weights: Any) -> None:
    found = class_balance(weights, 0, labels, NAMES).of_images(labels)
    assert found is not None
    assert found.mean() == pytest.approx(1)
    if weights == "balanced":
        sums = [found[labels == label].sum() for label in np.unique(labels)]
        np.testing.assert_allclose(sums, sums[0])


@settings(max_examples=10)
@given(times=st.lists(st.integers(1, 4), min_size=3, max_size=3), n=st.integers(9, 40), d=st.integers(2, 60))
def test_a_weight_counts_as_repeated_images(times: list[int], n: int, d: int) -> None:
    features, labels = blobs(n, d, 3)
    weights = dict(zip(NAMES, map(float, times), strict=False))
    weighted = solve(features, labels, LBFGS(l2=0.1), 0, balance=class_balance(weights, 0, labels, NAMES[:3]))
    rows = np.repeat(np.arange(n), np.array(times)[labels])
    repeated = solve(features[rows], labels[rows], LBFGS(l2=0.1), 0)
    np.testing.assert_allclose(weighted.logits(features), repeated.logits(features), atol=2e-3)


def test_an_adjusted_head_minimizes_the_adjusted_loss() -> None:
    """scikit-learn has no offsets; the solution is the plain one, its logits lower by the offsets."""
    features, labels = blobs(60, 5, 2)
    keep = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:6]]
    features, labels = features[keep], labels[keep]
    balance = class_balance(None, 1.5, labels, ["a", "b"])
    plain, adjusted = solve(features, labels, LBFGS(), 0), solve(features, labels, LBFGS(), 0, balance=balance)
    shift = plain.logits(features) - adjusted.logits(features)
    np.testing.assert_allclose(shift, np.tile(1.5 * np.log([30 / 36, 6 / 36]), (36, 1)), atol=1e-5)
    assert (adjusted.l2, adjusted.log_losses) == (plain.l2, plain.log_losses)
    assert plain.out_of_fold is not None
    assert adjusted.out_of_fold is not None
    np.testing.assert_allclose(plain.out_of_fold[0] - adjusted.out_of_fold[0], shift, atol=1e-5)


def test_the_penalty_is_chosen_by_the_weighted_loss() -> None:
    features, labels = blobs(90, 40, 2, spread=3)
    found = solve(features, labels, LBFGS(), 0, balance=ClassBalance(np.array([0.1, 1.9])))
    logits, true = found.out_of_fold or ([], [])
    weights = np.array([0.1, 1.9])[true]
    losses = np.log1p(np.exp(np.where(true, 1, -1) * (logits[:, 0] - logits[:, 1])))
    assert found.log_losses[found.l2] == pytest.approx(np.average(losses, weights=weights))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw two classes of colours that overlap, of 90 and 10 training images."""
    root, rng = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for folder, count, red in (("train/a", 90, 0), ("train/b", 10, 40), ("test/a", 60, 0), ("test/b", 60, 40)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = 128 + rng.normal(0, 28, 3) + [red, 0, -red / 3] + rng.normal(0, 30, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / f"{number}.png")
    return root


ADAM = ["optimizer=adam", "optimizer.learning_rate=0.01", "transfer.head.epochs=40"]


@pytest.mark.parametrize(
    ("options", "answered"),
    [
        ([], False),
        pytest.param(ADAM, False, marks=pytest.mark.slow),
        (["trainer.class_weights=balanced"], True),
        (["trainer.class_weights={b: 9}", *ADAM], True),
        (["trainer.logit_adjustment=1", *ADAM], True),
    ],
    ids=["solved", "trained", "weights", "trained with weights", "trained with adjustment"],
)
def test_a_rare_class_is_answered(uneven: Path, tmp_path: Path, options: list[str], answered: bool) -> None:
    fixed = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={uneven}", "callbacks=none"]
    metrics = compose([*fixed, *options]).run(tmp_path).metrics
    assert (metrics["test_recall"]["b"] > 0.5) == answered
    assert (metrics["test_balanced_accuracy"] > 0.6) == answered


def test_weights_of_unknown_classes_are_refused(tmp_path: Path) -> None:
    root = draw_tree(tmp_path / "photos", {"red": 6, "blue": 6})
    options = ["backbone=tiny", "data=folder", f"data.root={root}", "trainer.class_weights={red: 2, green: 3}"]
    with pytest.raises(InputError, match="there is no class green; the classes are blue, red"):
        compose(options).run(tmp_path / "run")


@pytest.mark.parametrize(
    "wrong",
    ["trainer.class_weights={red: 0}", "trainer.class_weights={red: -1}", "trainer.class_weights=even",
     "trainer.logit_adjustment=-1", "trainer.logit_adjustment=nan"],
)  # fmt: skip
def test_nonsense_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(InputError, match=wrong.partition("=")[0]) as refused:
        compose(["backbone=tiny", wrong])
    assert "\n" not in str(refused.value)
