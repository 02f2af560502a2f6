"""What moves in a fit and what does not, through the real fit, bit for bit."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tl_research.backbone import Custom
from tl_research.classifier import BatchNorm, assemble, blocks, set_trainable, trainable_table
from tl_research.head import MLP, Linear

TINY = Custom(name="tiny", build="tl_research.networks.tiny:Tiny", image_size=32, weights=None, preprocessing="tf")  # type: ignore[call-arg]


@pytest.fixture
def classifier() -> keras.Model:
    backbone = TINY.build()
    return assemble(backbone, Linear().build(32, 2))


def fit(classifier: keras.Model) -> dict[str, bool]:
    """One epoch of the real fit; which variables moved, by path."""
    before = {v.path: np.array(v) for v in classifier.variables}
    classifier.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.float32)
    classifier.fit(pixels, np.arange(16) % 2, batch_size=8, verbose=0)
    return {v.path: not np.array_equal(before[v.path], v) for v in classifier.variables if v.path in before}


def is_statistic(path: str) -> bool:
    return path.endswith(("moving_mean", "moving_variance"))


def is_norm(path: str) -> bool:
    return "_bn/" in path


def test_frozen_moves_the_head_and_nothing_else(classifier: keras.Model) -> None:
    set_trainable(classifier, 0, "frozen")
    moved = fit(classifier)
    assert {path for path, changed in moved.items() if changed} == {p for p in moved if "logits" in p}


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
def test_batch_norm_policies_in_unfrozen_blocks(classifier: keras.Model, policy: BatchNorm) -> None:
    set_trainable(classifier, "all", policy)
    moved = fit(classifier)
    statistics = {moved[p] for p in moved if is_statistic(p)}
    scales = {moved[p] for p in moved if is_norm(p) and not is_statistic(p)}
    kernels = {moved[p] for p in moved if not is_norm(p) and "logits" not in p}
    assert kernels == {True}
    assert statistics == {policy != "frozen"}
    assert scales == {policy == "train"}


@pytest.mark.parametrize("unfreeze", [1, 2])
def test_blocks_unfreeze_from_the_top(classifier: keras.Model, unfreeze: int) -> None:
    set_trainable(classifier, unfreeze, "train")
    moved = fit(classifier)
    parts = blocks(classifier.get_layer("backbone"))
    for number, block in enumerate(parts):
        paths = [w.path for layer in block.layers for w in layer.weights]
        assert {moved[path] for path in paths} == {number >= len(parts) - unfreeze}


def test_freezing_again_after_a_fit_holds(classifier: keras.Model) -> None:
    set_trainable(classifier, "all", "adapt")
    fit(classifier)
    set_trainable(classifier, 0, "frozen")
    assert {path for path, changed in fit(classifier).items() if changed} == {
        v.path for v in classifier.get_layer("head").weights
    }
    set_trainable(classifier, "all", "train")  # adapt's exceptions are not remembered
    assert all(fit(classifier).values())


def test_the_table_says_what_moves(classifier: keras.Model) -> None:
    set_trainable(classifier, 1, "adapt")
    moved = fit(classifier)
    table = {row.name: row for row in trainable_table(classifier)}
    size = {v.path: int(np.prod(v.shape)) for v in classifier.variables}
    expected = sum(size[p] for p, changed in moved.items() if changed and not is_statistic(p))
    assert sum(row.trainable for row in table.values()) == expected
    assert [row.batch_norm for row in table.values()] == ["frozen", "frozen", "adapt", "-"]


def test_heads_give_float32_logits_with_the_data_s_class_count() -> None:
    for head in (Linear(), MLP(layers=2, units=8)):
        model = head.build(5, 3)
        assert model.name == "head"
        assert model.output_shape == (None, 3)
        assert model(np.zeros((1, 5), np.float32)).dtype == "float32"
