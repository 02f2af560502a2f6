"""Join a backbone and a head, and select what is trained."""

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
    """Build pixels `(n, s, s, 3)`, RGB 0-255 -> logits `(n, num_classes)`; both parts remain nested models."""
    import keras

    pixels = keras.Input(backbone.input_shape[1:], name="pixels")
    return keras.Model(pixels, head(backbone(pixels)), name="classifier")


@dataclass(frozen=True)
class Part:
    """A block of the backbone, or the head, and which of its variables a stage changes."""

    name: str
    layers: Sequence[keras.Layer]
    learning: Sequence[keras.Variable]
    """Variables that the optimizer updates."""
    statistics: Sequence[keras.Variable]
    """Moving means and variances that the forward pass updates."""
    rate: float
    """Factor of the stage's learning rate."""
    unfrozen: bool


def set_trainable(
    classifier: keras.Model,
    unfreeze: int | Literal["all"],
    batch_norm: BatchNorm = "frozen",
    parameters: Parameters = "all",
    layer_decay: float = 1.0,
) -> list[Part]:
    """Make the head and `parameters` of the backbone's top `unfreeze` blocks trainable; return all blocks in order, the
    head last, with their trainable variables.

    `batch_norm` is the mode of the backbone's normalization in unfrozen blocks: `frozen` (statistics, gamma and beta
    are fixed, because statistics of a few images are worse than ImageNet's), `train` (all are updated), `adapt` (only
    the statistics are updated). Gamma and beta are always trained if `parameters` selects them.

    Keras normalizes by batch statistics, and updates the moving ones, only in layers whose `trainable` is set; a
    `training=False` in the graph is overridden by the outermost call (Keras 3.15). So the flag selects how a layer
    normalizes, and the list of variables what the optimizer updates.
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
    """Set one layer's flags; return the variables to train and the statistics to update."""
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
    """List the batch norms in a layer, which may itself be one or contain others."""
    import keras

    return [part for part in layer._flatten_layers() if isinstance(part, keras.layers.BatchNormalization)]


@dataclass(frozen=True)
class TrainableRow:
    """One row of the table printed before each stage."""

    name: str
    parameters: int
    trainable: int
    batch_norm: str
    rate: float
    """Factor of the stage's learning rate; 0 if nothing is trained."""


def trainable_table(parts: Sequence[Part]) -> list[TrainableRow]:
    """Summarize, block by block, what is trained."""
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
