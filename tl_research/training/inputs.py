"""The inputs of a stage: batches of features, feature maps or images, and the part of the classifier for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tl_research.backend.bn_folding import fold_batch_norm
from tl_research.backend.devices import has_gpu
from tl_research.backend.inference import Forward, compile_forward
from tl_research.backend.train_step import OutOfMemoryError, TrainStep
from tl_research.data.loader import Batch, numbered_batches, one_hot, rows_epoch
from tl_research.features.head_inputs import HeadInputs
from tl_research.features.row_source import DtypeRangeError
from tl_research.features.summary import show_features
from tl_research.features.table import FeatureTable
from tl_research.models.trainable_plan import TrainablePlan

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule

log = logging.getLogger(__name__)

EVERY_EPOCH = "frozen blocks run in every epoch, for what they make of images is not kept"


class ClosableBatches(Iterator[Batch], Protocol):
    """An iterator of batches that can be closed before its end."""

    def close(self) -> None:
        """Free the batches that were loaded ahead."""


@dataclass(frozen=True)
class StageInputs:
    """Batches of one kind, and the part of the classifier that computes logits from them.

    `train(epoch, skip)` gives an epoch's batches from number `skip` on, `validation()` those of the validation images.
    """

    kind: Literal["features", "maps", "images"]
    forward: Forward
    """The forward pass of training."""
    infer: Forward
    train: Callable[[int, int], ClosableBatches]
    validation: Callable[[], ClosableBatches]
    num_batches: int
    """Training batches in an epoch."""

    @property
    def described(self) -> str:
        """Say what the batches are of."""
        return "feature maps of the frozen blocks" if self.kind == "maps" else self.kind

    @cached_property
    def logits(self) -> Callable[[np.ndarray], np.ndarray]:
        """Inference on one batch, compiled once: inputs `(b, ...)` -> logits `(b, k)`."""
        return compile_forward(self.infer)


def feature_inputs(
    head: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    batch_size: int,
    seed: int,
) -> StageInputs:
    """Feed the head alone with features `(n, d)` and labels `(n,)`."""
    return StageInputs(
        kind="features",
        forward=lambda rows: head(rows, training=True),
        infer=lambda rows: head(rows, training=False),
        train=lambda epoch, skip: rows_epoch(*train, num_classes, batch_size, epoch=epoch, skip=skip, seed=seed),
        validation=lambda: rows_epoch(*validation, num_classes, batch_size),
        num_batches=-(-len(train[1]) // batch_size),
    )


def map_inputs(plan: TrainablePlan, table: FeatureTable, data: DataModule, batch_size: int, seed: int) -> StageInputs:
    """Feed the unfrozen blocks and the head with the feature maps of the frozen blocks, from `table`."""
    head, tail = plan.head, plan.tail
    assert tail is not None
    trained = fold_batch_norm(tail, plan.learning)

    def batches(split: str, epoch: int = 0, skip: int = 0, seed: int | None = None) -> ClosableBatches:
        numbered = numbered_batches(data.indices(split), batch_size, epoch=epoch, skip=skip, seed=seed)
        return (
            (table.get_batch(indices), one_hot(data.labels[indices], len(data.class_names))) for _, indices in numbered
        )

    return StageInputs(
        kind="maps",
        forward=lambda maps: head(trained(_as_float(maps), training=True), training=True),
        infer=lambda maps: head(tail(_as_float(maps), training=False), training=False),
        train=lambda epoch, skip: batches("train", epoch, skip, seed),
        validation=lambda: batches("val"),
        num_batches=-(-len(data.indices("train")) // batch_size),
    )


def image_inputs(plan: TrainablePlan, data: DataModule, batch_size: int, seed: int, threads: int) -> StageInputs:
    """Feed the whole classifier with images."""
    backbone, head = plan.backbone, plan.head
    size = int(backbone.input_shape[1])

    def batches(split: str, **order: Any) -> ClosableBatches:
        return data.epoch(data.indices(split), size, batch_size, threads=threads, **order)

    return StageInputs(
        kind="images",
        forward=training_forward(plan),
        infer=lambda pixels: head(backbone(_as_float(pixels), training=False), training=False),
        train=lambda epoch, skip: batches("train", epoch=epoch, skip=skip, seed=seed),
        validation=lambda: batches("val"),
        num_batches=-(-len(data.indices("train")) // batch_size),
    )


def training_forward(plan: TrainablePlan) -> Forward:
    """Return the training-mode forward pass from pixels to logits; frozen blocks run in inference mode."""
    head, learning = plan.head, plan.learning
    prefix, tail = (part and fold_batch_norm(part, learning) for part in (plan.prefix, plan.tail))

    def forward(pixels: Any) -> Any:
        maps = _as_float(pixels)
        if prefix is not None:
            maps = prefix(maps, training=False)
        if tail is not None:
            maps = tail(maps, training=True)
        return head(maps, training=True)

    return forward


def _as_float(values: Any) -> Any:
    from keras import ops

    return ops.cast(values, "float32")


@dataclass(frozen=True)
class InputFactory:
    """Builds the inputs of stages from the features that heads learn from and from the images."""

    features: HeadInputs
    seed: int
    threads: int

    def cache_maps(self, plan: TrainablePlan, trained: Callable[[keras.Model], bool]) -> FeatureTable | None:
        """Compute the feature maps of the frozen blocks for all training and validation images.

        `trained` tells whether an earlier stage has trained a part of the backbone. Returns None where images change
        from epoch to epoch, where no block or every block is frozen, or where the maps would take too much room.
        """
        data, table = self.features.data, self.features.features
        if not plan.num_unfrozen or plan.prefix is None or not data.augment.changes_nothing:
            return None
        maps = table.maps(plan.prefix)
        if trained(plan.prefix):
            maps = maps.after_training()
        indices = data.indices("train", "val")
        size_gb = maps.size_gb(len(indices))
        if size_gb > table.options.max_map_gb:
            log.info("%s: they would take %.1f GB, more than features.max_map_gb allows", EVERY_EPOCH, size_gb)
            return None
        try:
            with self.features.phase("features"):
                maps.load(indices)
        except DtypeRangeError as error:
            log.info("%s: %s", EVERY_EPOCH, error)
            return None
        show_features(maps.computed, maps.hit, "feature maps")
        return maps

    def build(self, plan: TrainablePlan, only_head: bool, maps: FeatureTable | None, batch_size: int) -> StageInputs:
        """Build the inputs of a stage: features where `only_head` learns, feature maps if there are any, or images."""
        data = self.features.data
        if only_head:
            train, val = self.features.learned("train"), self.features.plain("val")
            return feature_inputs(plan.head, train, val, len(data.class_names), batch_size, self.seed)
        if maps is not None:
            return map_inputs(plan, maps, data, batch_size, self.seed)
        return image_inputs(plan, data, batch_size, self.seed, self.threads)


def fits_in_memory(step: TrainStep, inputs: StageInputs, changing: Sequence[keras.Variable]) -> bool:
    """Return whether the gradient of the first batch can be computed; always true without a GPU, for a CPU's memory
    gives no error before it is too late. Afterwards the `changing` variables have their values again."""
    if not has_gpu():
        return True
    with closing(inputs.train(0, 0)) as batches:
        batch = next(batches)
    before = [variable.numpy() for variable in changing]
    try:
        step.rehearse(batch)
    except OutOfMemoryError:
        return False
    finally:
        for variable, value in zip(changing, before, strict=True):
            variable.assign(value)
    return True
