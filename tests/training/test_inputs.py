"""Feeds: what a stage learns from, kept or made anew, comes to the same; and below what learns nothing moves."""

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
"""How far apart numbers of a size may be, as a share of it: float16 rounds to half of 2^-10."""


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
    """The variables of blocks that do not learn."""


def an_epoch(
    data: DataModule, unfreeze: int, batch_norm: BatchNorm, rows: Literal["images", "<f2", "<f4"], rate: float = 0.02
) -> Outcome:
    """Of a tiny network whose batch norm has seen something: on images, or on maps kept in 16 or 32 bits."""
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
        kept = FeatureTable(backbone, data, Features(), "openvino", 2).maps(plan.prefix)
        kept = replace(kept, row_type=rows)
        kept.load(data.indices("train", "val"))
        feed = inputs.map_inputs(plan, kept, data, 8, 3)
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
        (1, "frozen"),
        (2, "frozen"),
        (3, "frozen"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, "train"), (2, "train"), (3, "train"), (1, "adapt"), (2, "adapt"))
        ),
    ],
)
def test_maps_that_are_kept_teach_what_the_images_do_and_blocks_below_stay(
    data: DataModule, unfreeze: int, batch_norm: BatchNorm
) -> None:
    whole = an_epoch(data, unfreeze, batch_norm, "images")
    demand_only_what_learns_moved(whole, batch_norm)
    if unfreeze == 3:
        assert not whole.frozen, "of three blocks: there are no maps to keep"
        return
    furthest = max(np.abs(whole.end[path] - whole.start[path]).max() for path in whole.learned)
    assert furthest > 1e-3
    for rows, rounding in (("<f4", SINGLE), ("<f2", HALF)):
        kept = an_epoch(data, unfreeze, batch_norm, rows)  # type: ignore[arg-type]
        demand_only_what_learns_moved(kept, batch_norm)
        for found, expected in ((kept.before, whole.before), (kept.after, whole.after)):
            assert np.abs(found - expected).max() <= rounding * np.abs(expected).max()
        apart = max(np.abs(kept.end[path] - whole.end[path]).max() for path in whole.end)
        assert apart <= 8 * rounding * furthest


def demand_only_what_learns_moved(found: Outcome, batch_norm: BatchNorm) -> None:
    """Bit for bit: blocks below, and statistics unless they are to move."""
    moved = {path for path, value in found.end.items() if not np.array_equal(value, found.start[path])}
    statistics = {path for path in found.end if path.endswith(("moving_mean", "moving_variance"))}
    assert moved == found.learned | (set() if batch_norm == "frozen" else statistics - found.frozen)
    assert not moved & found.frozen


def test_an_epoch_begins_where_it_is_told_to(data: DataModule) -> None:
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


def test_maps_that_would_take_too_much_room_are_made_in_every_epoch(
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
        told = [record.getMessage() for record in caplog.records if "max_map_gb" in record.getMessage()]
        assert len(told) == (room == 0)
    assert made == ["map_inputs", "image_inputs"]
    assert told[0].startswith("frozen blocks run in every epoch, for what they make of images is not kept: they would")
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.01)
