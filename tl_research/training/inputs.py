"""Feeds: what a stage learns from, and what it sends it through. A stage that leaves lower blocks alone need not run
them on every image in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tl_research.backend.bn_folding import fold_batch_norm
from tl_research.backend.train_step import Forward, trace_any_batch_size
from tl_research.data.loader import Batch, numbered_batches, one_hot, rows_epoch
from tl_research.models.blocks import find_blocks
from tl_research.models.blocks import split_backbone as split

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule
    from tl_research.features.table import FeatureTable


class Closable(Iterator[Batch], Protocol):
    """Batches that may be given up before their end."""

    def close(self) -> None:
        """Frees what has been loaded ahead."""


@dataclass(frozen=True)
class StageInputs:
    """Batches of one kind, and the part of the classifier that makes logits of them.

    `train(epoch, skip)` gives an epoch's batches from number `skip` on, `validation()` those to be judged by.
    """

    what: Literal["features", "maps", "images"]
    forward: Forward
    """As in training."""
    infer: Forward
    train: Callable[[int, int], Closable]
    validation: Callable[[], Closable]
    num_batches: int
    """Of an epoch."""

    @cached_property
    def answer(self) -> Callable[[np.ndarray], np.ndarray]:
        """Logits `(b, k)` of one batch, traced once."""
        import tensorflow as tf

        call = trace_any_batch_size(tf.function(self.infer, autograph=False, jit_compile=False))
        return lambda inputs: np.asarray(call(inputs), np.float32)


def on_features(
    head: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    batch_size: int,
    seed: int,
) -> StageInputs:
    """The head alone, on features `(n, d)` and labels `(n,)`."""
    return StageInputs(
        what="features",
        forward=lambda rows: head(rows, training=True),
        infer=lambda rows: head(rows, training=False),
        train=lambda epoch, skip: rows_epoch(*train, num_classes, batch_size, epoch=epoch, skip=skip, seed=seed),
        validation=lambda: rows_epoch(*validation, num_classes, batch_size),
        num_batches=-(-len(train[1]) // batch_size),
    )


def on_maps(
    backbone: keras.Model,
    head: keras.Model,
    unfreeze: int | Literal["all"],
    learning: Sequence[keras.Variable],
    table: FeatureTable,
    data: DataModule,
    batch_size: int,
    seed: int,
) -> StageInputs:
    """The top blocks and the head, on what the blocks below made of each image, which `table` has."""
    _, tail = split(backbone, int(unfreeze))
    trained = fold_batch_norm(tail, learning)

    def batches(split: str, epoch: int = 0, skip: int = 0, seed: int | None = None) -> Closable:
        numbered = numbered_batches(data.indices(split), batch_size, epoch=epoch, skip=skip, seed=seed)
        return (
            (table.get_batch(indices), one_hot(data.labels[indices], len(data.class_names))) for _, indices in numbered
        )

    return StageInputs(
        what="maps",
        forward=lambda maps: head(trained(_as_float(maps), training=True), training=True),
        infer=lambda maps: head(tail(_as_float(maps), training=False), training=False),
        train=lambda epoch, skip: batches("train", epoch, skip, seed),
        validation=lambda: batches("val"),
        num_batches=-(-len(data.indices("train")) // batch_size),
    )


def on_images(
    backbone: keras.Model,
    head: keras.Model,
    unfreeze: int | Literal["all"],
    learning: Sequence[keras.Variable],
    data: DataModule,
    batch_size: int,
    seed: int,
    threads: int,
) -> StageInputs:
    """The whole classifier, on images. What is frozen runs as in inference."""
    size = int(backbone.input_shape[1])

    def batches(split: str, **order: Any) -> Closable:
        return data.epoch(data.indices(split), size, batch_size, threads=threads, **order)

    return StageInputs(
        what="images",
        forward=forward_of(backbone, head, unfreeze, learning),
        infer=lambda pixels: head(backbone(_as_float(pixels), training=False), training=False),
        train=lambda epoch, skip: batches("train", epoch=epoch, skip=skip, seed=seed),
        validation=lambda: batches("val"),
        num_batches=-(-len(data.indices("train")) // batch_size),
    )


def forward_of(
    backbone: keras.Model, head: keras.Model, unfreeze: int | Literal["all"], learning: Sequence[keras.Variable]
) -> Forward:
    """Pixels -> logits as in training, where these variables learn, but for the blocks that `unfreeze` leaves out: they
    run as in inference."""
    if unfreeze == "all" or unfreeze >= len(find_blocks(backbone)):
        whole = fold_batch_norm(backbone, learning)
        return lambda pixels: head(whole(_as_float(pixels), training=True), training=True)
    if unfreeze == 0:
        frozen = fold_batch_norm(backbone)
        return lambda pixels: head(frozen(_as_float(pixels), training=False), training=True)
    prefix, tail = (fold_batch_norm(part, learning) for part in split(backbone, unfreeze))
    return lambda pixels: head(tail(prefix(_as_float(pixels), training=False), training=True), training=True)


def _as_float(values: Any) -> Any:
    import tensorflow as tf

    return tf.cast(values, tf.float32)
