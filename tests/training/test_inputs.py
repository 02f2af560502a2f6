"""The inputs of a stage: cached feature maps train like images, and frozen blocks do not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pytest

from tests.experiment.test_experiment import run, table
from tests.models.test_backbone import recipe
from tl_research import compose
from tl_research.backend.train_step import Learning, TrainStep
from tl_research.data.datamodule import DataModule
from tl_research.features.table import Features, FeatureTable
from tl_research.models.blocks import find_blocks
from tl_research.models.classifier import BatchNorm, build_classifier
from tl_research.models.head import Linear
from tl_research.models.trainable_plan import resolve_plan
from tl_research.training import inputs
from tl_research.training.inputs import StageInputs

HALF, SINGLE = 2**-11, 2**-20
"""Relative rounding errors: float16 rounds to half of 2^-10."""


@pytest.fixture
def data(colours: Path) -> DataModule:
    return compose(["data=folder", f"data.root={colours}"]).data.load()


@dataclass
class Outcome:
    before: np.ndarray
    """Logits."""
    after: np.ndarray
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    learned: set[str]
    frozen: set[str]
    """The variables of frozen blocks."""


def an_epoch(
    data: DataModule, unfreeze: int, batch_norm: BatchNorm, rows: Literal["images", "<f2", "<f4"], rate: float = 0.02
) -> Outcome:
    """Train a tiny network, with batch norm of random statistics, on images or on maps stored in 16 or 32 bits."""
    backbone = recipe("tiny", image_size=32).build()
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        if "_bn/" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    keras.utils.set_random_seed(0)
    head = Linear().build(32, 2)
    classifier = build_classifier(backbone, head)
    plan = resolve_plan(classifier, unfreeze, batch_norm)
    if rows == "images":
        feed = inputs.image_inputs(plan, data, 8, 3, 2)
    else:
        maps = FeatureTable(backbone, data, Features(), "openvino", 2).maps(plan.prefix)
        maps = replace(maps, row_type=rows)
        maps.load(data.indices("train", "val"))
        feed = inputs.map_inputs(plan, maps, data, 8, 3)
    learning = [Learning(variable) for variable in plan.learning]
    step = TrainStep(feed.forward, learning, plan.statistics, keras.optimizers.SGD())

    def weights() -> dict[str, np.ndarray]:
        return {weight.path: np.array(weight) for weight in classifier.weights}

    def logits() -> np.ndarray:
        return np.concatenate([feed.logits(batch) for batch, _ in feed.validation()])

    start, before = weights(), logits()
    batches = list(feed.train(0, 0))
    assert len(batches) == feed.num_batches == 3
    for batch in batches:
        step([batch], rate)
    blocks = find_blocks(backbone)
    frozen = {w.path for block in blocks[: len(blocks) - unfreeze] for layer in block.layers for w in layer.weights}
    return Outcome(before, logits(), start, weights(), {variable.path for variable in plan.learning}, frozen)


@pytest.mark.parametrize(
    ("unfreeze", "batch_norm"),
    [
        (2, "frozen"),
        *(pytest.param(blocks, "frozen", marks=pytest.mark.slow) for blocks in (1, 3)),
        *(pytest.param(blocks, "train", marks=pytest.mark.slow) for blocks in (1, 2, 3)),
        *(pytest.param(blocks, "adapt", marks=pytest.mark.slow) for blocks in (1, 2)),
    ],
)
def test_cached_maps_train_like_images(data: DataModule, unfreeze: int, batch_norm: BatchNorm) -> None:
    whole = an_epoch(data, unfreeze, batch_norm, "images")
    check_changed_variables(whole, batch_norm)
    if unfreeze == 3:
        assert not whole.frozen, "all blocks learn: there are no maps to cache"
        return
    furthest = max(np.abs(whole.end[path] - whole.start[path]).max() for path in whole.learned)
    assert furthest > 1e-3
    for rows, rounding in (("<f4", SINGLE), ("<f2", HALF)):
        cached = an_epoch(data, unfreeze, batch_norm, rows)  # type: ignore[arg-type]
        check_changed_variables(cached, batch_norm)
        for logits, expected in ((cached.before, whole.before), (cached.after, whole.after)):
            assert np.abs(logits - expected).max() <= rounding * np.abs(expected).max()
        apart = max(np.abs(cached.end[path] - whole.end[path]).max() for path in whole.end)
        assert apart <= 8 * rounding * furthest


def check_changed_variables(found: Outcome, batch_norm: BatchNorm) -> None:
    """Check that frozen blocks, and statistics unless they may change, are bit-identical."""
    moved = {path for path, value in found.end.items() if not np.array_equal(value, found.start[path])}
    statistics = {path for path in found.end if path.endswith(("moving_mean", "moving_variance"))}
    assert moved == found.learned | (set() if batch_norm == "frozen" else statistics - found.frozen)
    assert not moved & found.frozen


def test_an_epoch_begins_at_the_given_batch(data: DataModule) -> None:
    backbone = recipe("tiny", image_size=32).build()
    head = Linear().build(32, 2)
    plan = resolve_plan(build_classifier(backbone, head), 1)
    maps = FeatureTable(backbone, data, Features(), "keras", 2).maps(plan.prefix)
    maps.load(data.indices("train", "val"))
    pool = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32), data.labels[data.indices("train")]
    for feed in (
        inputs.image_inputs(plan, data, 8, 3, 2),
        inputs.map_inputs(plan, maps, data, 8, 3),
        inputs.feature_inputs(head, pool, pool, 2, 8, 3),
    ):
        whole, rest = list(feed.train(1, 0)), list(feed.train(1, 1))
        assert [len(batch) for batch, _ in whole] == [8, 8, 4]
        for batch, expected in zip(rest, whole[1:], strict=True):
            np.testing.assert_array_equal(batch[0], expected[0])
            np.testing.assert_array_equal(batch[1], expected[1])
        assert not np.array_equal(whole[0][0], next(iter(feed.train(2, 0)))[0])


@pytest.mark.slow
def test_maps_above_max_map_gb_are_recomputed(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def noted(name: str) -> Callable[..., StageInputs]:
        make = getattr(inputs, name)

        def noting(*given: Any) -> StageInputs:
            made.append(name)
            return make(*given)

        return noting

    for name in ("map_inputs", "image_inputs"):
        monkeypatch.setattr(inputs, name, noted(name))
    caplog.set_level("INFO", "tl_research")
    options = ["transfer=finetune", "transfer.backbone.epochs=2", "callbacks=none"]
    losses = []
    for room in (4, 0):
        done = run(tmp_path / str(room), colours, *options, f"features.max_map_gb={room}")
        losses.append([float(row["val_loss"]) for row in table(done.directory / "history.csv")])
        messages = [record.getMessage() for record in caplog.records if "max_map_gb" in record.getMessage()]
        assert len(messages) == (room == 0)
    assert made == ["map_inputs", "image_inputs"]
    assert messages[0].startswith(
        "frozen blocks run in every epoch, for what they make of images is not kept: they would"
    )
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.01)
