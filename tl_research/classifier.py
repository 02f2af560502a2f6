"""Putting a backbone and a head together, finding the backbone's blocks, and setting what learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import keras

BatchNorm = Literal["frozen", "adapt", "train"]


def assemble(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """Pixels `(n, s, s, 3)`, RGB 0-255 -> logits `(n, num_classes)`; its parts stay models of their own."""
    import keras

    pixels = keras.Input(backbone.input_shape[1:], name="pixels")
    return keras.Model(pixels, head(backbone(pixels)), name="classifier")


@dataclass(frozen=True)
class Block:
    """Consecutive operations of a backbone between two cuts, named after the one whose output closes it."""

    name: str
    operations: tuple[keras.Operation, ...]

    @property
    def layers(self) -> list[keras.Layer]:
        """Those of its operations that can hold weights; an addition written as `x + y` is none of them."""
        import keras

        return [operation for operation in self.operations if isinstance(operation, keras.Layer)]


def blocks(backbone: keras.Model) -> list[Block]:
    """A backbone's blocks in order, from its graph alone.

    A cut is an operation through which every path from input to output passes, so a residual or inception block is
    never cut. Blocks end at the last cut of each resolution: the next block begins where the feature map shrinks. What
    follows the pooling belongs to the last.
    """
    operations = backbone.operations
    cuts = list(_cuts(operations))
    closing = [
        index
        for index, following in zip(cuts, [*cuts[1:], None], strict=True)
        if following is None or _resolution(operations[following]) not in (_resolution(operations[index]), ())
    ]
    found: list[Block] = []
    start = 0
    for index in closing:
        part = Block(operations[index].name, tuple(operations[start : index + 1]))
        start = index + 1
        if any(layer.weights for layer in part.layers):
            found.append(part)
        elif found:  # pooling and the like are no block of their own
            found[-1] = Block(found[-1].name, found[-1].operations + part.operations)
        else:
            start = 0
    return found


def _cuts(operations: Sequence[keras.Operation]) -> Iterator[int]:
    """Indices, in topological order, of the operations that every path crosses: after one of them no earlier output is
    still waiting to be used."""
    position = {id(operation): index for index, operation in enumerate(operations)}
    reach = 0  # the furthest operation that an output seen so far flows into
    for index, operation in enumerate(operations):
        if reach <= index:
            yield index
        users = (position.get(id(node.operation), 0) for node in operation._outbound_nodes)
        reach = max([reach, *users])


def _resolution(operation: keras.Operation) -> tuple[int, ...]:
    shape = getattr(operation.output, "shape", ())
    return tuple(shape[1:-1])


def set_trainable(classifier: keras.Model, unfreeze: int | Literal["all"], batch_norm: BatchNorm) -> None:
    """Sets what the next fit moves: the head, and `unfreeze` blocks of the backbone from the top. Compile after it, for
    Keras reads `trainable` at compile time.

    `batch_norm` is what the backbone's normalization does in unfrozen blocks: `frozen` (statistics, gamma and beta
    stay: the statistics of a few images are worse than ImageNet's), `train` (all of them move), `adapt` (the statistics
    move, gamma and beta stay).
    """
    backbone = classifier.get_layer("backbone")
    classifier.get_layer("head").trainable = True
    backbone.trainable = True
    parts = blocks(backbone)
    first = 0 if unfreeze == "all" else max(len(parts) - unfreeze, 0)
    for number, block in enumerate(parts):
        for layer in block.layers:
            _set_layer(layer, number >= first, batch_norm)


def _set_layer(layer: Any, learns: bool, batch_norm: BatchNorm) -> None:
    import keras

    layer.trainable = learns
    if learns and isinstance(layer, keras.layers.BatchNormalization):
        layer.trainable = batch_norm != "frozen"
        if batch_norm == "adapt":
            # Keras updates the statistics of a layer that is trainable; its own two weights are taken out one by one.
            for variable in (layer.gamma, layer.beta):
                if variable is not None:
                    variable.trainable = False


@dataclass(frozen=True)
class Row:
    """A line of the table shown before each stage."""

    name: str
    parameters: int
    trainable: int
    batch_norm: str


def trainable_table(classifier: keras.Model) -> list[Row]:
    """What will move in the next fit, block by block, read from the model itself and not from what was asked for."""
    parts: list[tuple[str, list[Any]]] = [
        (block.name, block.layers) for block in blocks(classifier.get_layer("backbone"))
    ]
    parts.append(("head", list(classifier.get_layer("head").layers)))
    return [_row(name, layers) for name, layers in parts]


def _row(name: str, layers: list[Any]) -> Row:
    import keras

    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    modes = {"frozen" if not n.trainable else "train" if n.trainable_weights else "adapt" for n in norms}
    count = lambda variables: int(sum(np.prod(v.shape) for v in variables))  # noqa: E731
    return Row(
        name=name,
        parameters=count(w for layer in layers for w in layer.weights),
        trainable=count(w for layer in layers for w in layer.trainable_weights),
        batch_norm=" / ".join(sorted(modes)) or "-",
    )
