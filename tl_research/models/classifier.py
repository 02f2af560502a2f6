"""Putting a backbone and a head together, and saying what of them learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tl_research.models.blocks import find_blocks

if TYPE_CHECKING:
    import keras

BatchNorm = Literal["frozen", "adapt", "train"]
Parameters = Literal["all", "batch_norm", "bias"]


def build_classifier(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """Pixels `(n, s, s, 3)`, RGB 0-255 -> logits `(n, num_classes)`; its parts stay models of their own."""
    import keras

    pixels = keras.Input(backbone.input_shape[1:], name="pixels")
    return keras.Model(pixels, head(backbone(pixels)), name="classifier")


@dataclass(frozen=True)
class Part:
    """A block of the backbone, or the head, and what of it a stage moves."""

    name: str
    layers: Sequence[keras.Layer]
    learning: Sequence[keras.Variable]
    """What follows gradients."""
    statistics: Sequence[keras.Variable]
    """Moving means and variances that follow the images."""
    rate: float
    """What the stage's learning rate is multiplied by."""
    unfrozen: bool


def set_trainable(
    classifier: keras.Model,
    unfreeze: int | Literal["all"],
    batch_norm: BatchNorm = "frozen",
    parameters: Parameters = "all",
    layer_decay: float = 1.0,
) -> list[Part]:
    """Sets what the next fit moves, and says what that is, block by block, the head last: the head, and `parameters` of
    `unfreeze` blocks of the backbone from the top.

    `batch_norm` is what the backbone's normalization does in unfrozen blocks: `frozen` (statistics, gamma and beta
    stay: the statistics of a few images are worse than ImageNet's), `train` (all of them move), `adapt` (the statistics
    move, gamma and beta stay). Gamma and beta that are themselves the `parameters` move in any case.

    Keras normalizes by a batch's own statistics, and moves the kept ones, in layers whose `trainable` is set, and in no
    others: what is recorded in a graph as `training=False` is overruled by the outermost call (Keras 3.15). So the flag
    says how a layer normalizes, and the list of variables what follows gradients.
    """
    parts = find_blocks(classifier.get_layer("backbone"))
    first = 0 if unfreeze == "all" else max(len(parts) - unfreeze, 0)
    found = []
    for number, block in enumerate(parts):
        depth, unfrozen = len(parts) - number, number >= first
        moving = [_moving(layer, unfrozen, batch_norm, parameters) for layer in block.layers]
        learning = [variable for part, _ in moving for variable in part]
        statistics = [variable for _, part in moving for variable in part]
        found.append(Part(block.name, block.layers, learning, statistics, layer_decay**depth, unfrozen))
    head = classifier.get_layer("head")
    head.trainable = True
    statistics = [v for layer in head.layers for norm in _norms(layer) for v in norm.non_trainable_variables]
    return [*found, Part("head", head.layers, head.trainable_variables, statistics, 1.0, True)]


def _moving(
    layer: Any, learns: bool, batch_norm: BatchNorm, parameters: Parameters
) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Sets one layer, and gives what of it follows gradients and which statistics move."""
    layer.trainable = learns
    norms = _norms(layer)
    for norm in norms:
        norm.trainable = learns and batch_norm != "frozen"
    if not learns:
        return [], []
    scales = [variable for norm in norms for variable in (norm.gamma, norm.beta) if variable is not None]
    known = {id(variable) for variable in scales}
    others = [variable for variable in layer.trainable_variables if id(variable) not in known]
    moving = batch_norm != "frozen"
    statistics = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance) if moving]
    if parameters == "batch_norm":
        return scales, statistics
    if parameters == "bias":
        return [variable for variable in [*others, *scales] if variable.name in ("bias", "beta")], statistics
    return [*others, *(scales if batch_norm == "train" else [])], statistics


def _norms(layer: Any) -> list[Any]:
    """The batch norm in a layer that may be made of others, itself included."""
    import keras

    return [part for part in layer._flatten_layers() if isinstance(part, keras.layers.BatchNormalization)]


@dataclass(frozen=True)
class TrainableRow:
    """A line of the table shown before each stage."""

    name: str
    parameters: int
    trainable: int
    batch_norm: str
    rate: float
    """What the stage's learning rate is multiplied by; 0 where nothing learns."""


def trainable_table(parts: Sequence[Part]) -> list[TrainableRow]:
    """What will move in the next fit, block by block."""
    return [_row(part) for part in parts]


def _row(part: Part) -> TrainableRow:
    learning = {id(variable) for variable in part.learning}
    modes = {_mode(norm, learning) for layer in part.layers for norm in _norms(layer)}
    return TrainableRow(
        name=part.name,
        parameters=_count(weight for layer in part.layers for weight in layer.weights),
        trainable=_count(part.learning),
        batch_norm=" / ".join(sorted(modes)) or "-",
        rate=part.rate if part.learning else 0.0,
    )


def _mode(norm: Any, learning: set[int]) -> str:
    own = any(id(variable) in learning for variable in (norm.gamma, norm.beta))
    if not norm.trainable:
        return "gamma, beta" if own else "frozen"
    return "train" if own else "adapt"


def _count(variables: Iterator[Any] | Sequence[Any]) -> int:
    return int(sum(np.prod(variable.shape) for variable in variables))
