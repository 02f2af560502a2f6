"""Find the blocks of a backbone, its parts between two cuts of the graph. Blocks are the unit of unfreezing, of
layer-wise learning rates, and of splitting a backbone into a part computed once and a trainable part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_SHRINKS = 2 / 3  # ratio of sides: 113 -> 56 and 3 -> 2 start a block; 149 -> 147, an unpadded convolution, does not


@dataclass(frozen=True)
class Block:
    """Consecutive operations of a backbone between two cuts, named after the last one."""

    name: str
    operations: tuple[keras.Operation, ...]

    @property
    def layers(self) -> list[keras.Layer]:
        """List the operations that are layers; an addition written as `x + y` is not."""
        import keras

        return [operation for operation in self.operations if isinstance(operation, keras.Layer)]

    @property
    def num_parameters(self) -> int:
        """Count all weights, trainable or not."""
        return sum(math.prod(weight.shape) for layer in self.layers for weight in layer.weights)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Return the output's shape for one image: `(h, w, c)`, or `(d,)` after pooling."""
        return tuple(self.operations[-1].output.shape[1:])


def find_blocks(backbone: keras.Model) -> list[Block]:
    """Find a backbone's blocks, in order, from its graph alone.

    A cut is an operation on every path from input to output, so residual and inception blocks stay whole. A block ends
    where the feature map next shrinks, see `_Graph.end`, and before each attention, so that a transformer's blocks are
    its patch embedding and its encoder blocks. Every block has a trainable kernel: preprocessing belongs to the first
    block, pooling after the last map to the last.
    """
    graph = _Graph(backbone)
    operations = backbone.operations
    ends: list[int] = []
    for number in range(len(graph.cuts) - 1):
        start = ends[-1] + 1 if ends else 0
        end = graph.end(number, start) if graph.shrinks(number) else graph.end_before_attention(number, start)
        if end is not None:
            ends.append(end)
    if ends and not any(map(_kernels, operations[ends[-1] + 1 :])):
        ends.pop()
    starts = [0, *(end + 1 for end in ends)]
    ends.append(len(operations) - 1)
    return [
        Block(operations[end].name, tuple(operations[start : end + 1])) for start, end in zip(starts, ends, strict=True)
    ]


def split_backbone(backbone: keras.Model, unfreeze: int) -> tuple[keras.Model, keras.Model]:
    """Split a backbone below its top `unfreeze` blocks into `prefix`, pixels `(n, s, s, 3)` -> feature map
    `(n, h, w, c)`, and `tail`, that map -> features `(n, d)`.

    Both share the backbone's layers, so training the tail trains the backbone. In inference `tail(prefix(x))` equals
    `backbone(x)` bit for bit. The backbone's own graph is not modified.

    Raises:
        ValueError: one part would have no block: `unfreeze` is below 1, or not below the number of blocks.
    """
    parts = find_blocks(backbone)
    if not 0 < unfreeze < len(parts):
        raise ValueError(f"unfreeze={unfreeze}: {backbone.name} has {len(parts)} blocks, each part needs one")
    return _split_after(backbone, parts[-unfreeze - 1].operations[-1])


def split_at_last_map(backbone: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Split a backbone where its last feature map `(n, h, w, c)` with `h * w > 1` is complete; see `split_backbone`.

    Raises:
        ValueError: the backbone has no such map.
    """
    graph, operations = _Graph(backbone), backbone.operations
    maps = [cut for cut in graph.cuts if math.prod(_calls(backbone)[id(operations[cut])][0].outputs[0].shape[1:-1]) > 1]
    if not maps or len(operations[maps[-1]].output.shape) != 4:
        raise ValueError(f"{backbone.name} has no feature map")
    return _split_after(backbone, operations[maps[-1]])


def _split_after(backbone: keras.Model, operation: Any) -> tuple[keras.Model, keras.Model]:
    import keras

    (call,) = _calls(backbone)[id(operation)]
    (feature_map,) = call.outputs
    prefix = keras.Model(backbone.input, feature_map, name="prefix")
    # A model made directly from the inner tensor would get an input name that depends on models built before.
    cached = keras.Input(feature_map.shape[1:], dtype=feature_map.dtype, name="map")
    features = keras.Function.call(keras.Function(feature_map, backbone.output), cached)
    return prefix, keras.Model(cached, features, name="tail")


def multiply_accumulates(backbone: keras.Model) -> list[int]:
    """Count each block's multiply-accumulate operations for one image.

    Each kernel of a convolution (grouped, depthwise, separable) or dense layer counts once per position of the layer's
    output. Normalization, activations and pooling are not counted, as usual.
    """
    calls = _calls(backbone)
    return [
        sum(_macs(operation, calls[id(operation)]) for operation in block.operations) for block in find_blocks(backbone)
    ]


def _macs(operation: Any, calls: list[Any]) -> int:
    if hasattr(operation, "layers"):  # a nested model, whose layers' maps differ in size from its output
        inner = _calls(operation)
        return len(calls) * sum(_macs(layer, inner[id(layer)]) for layer in operation.layers)
    weights = sum(math.prod(kernel.shape) for kernel in _kernels(operation))
    return sum(weights * math.prod(call.outputs[0].shape[1:-1]) for call in calls) if weights else 0


def _kernels(operation: Any) -> list[Any]:
    """List weights that are matrices or more; the others are vectors with one number per channel."""
    return [weight for weight in getattr(operation, "weights", ()) if len(weight.shape) > 1]


def _calls(model: Any) -> dict[int, list[Any]]:
    """Map the id of each operation to its calls (Keras' nodes) in this model's graph. Operations also record calls in
    other models' graphs, such as a classifier's or those made by `split_backbone`."""
    calls: dict[int, list[Any]] = {}
    graph = getattr(model, "_functional", model)  # a Sequential's graph
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for call in graph._nodes_by_depth[depth]:
            calls.setdefault(id(call.operation), []).append(call)
    return calls


class _Graph:
    """A backbone's graph. `cuts` lists, in topological order, the indices of operations on every path."""

    def __init__(self, backbone: keras.Model):
        self._operations = backbone.operations
        self._calls = _calls(backbone)
        self.cuts = list(self._find_cuts())

    def _find_cuts(self) -> Iterator[int]:
        """Yield operations after which no earlier output is used any more."""
        position = {id(operation): index for index, operation in enumerate(self._operations)}
        furthest = list(range(len(position)))  # last operation that uses each output
        for calls in self._calls.values():
            for call in calls:
                for tensor in call.input_tensors:
                    source = position[id(tensor._keras_history.operation)]
                    furthest[source] = max(furthest[source], position[id(call.operation)])
        reach = 0
        for index, operation in enumerate(self._operations):
            calls = self._calls[id(operation)]
            if reach <= index and len(calls) == len(calls[0].outputs) == 1:  # a shared layer has several outputs
                yield index
            reach = max(reach, furthest[index])

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        """Return each cut's output shape, without the batch."""
        return [self._calls[id(self._operations[cut])][0].outputs[0].shape[1:] for cut in self.cuts]

    def shrinks(self, number: int) -> bool:
        """Tell whether the map shrinks from this cut to the next; pooling to a vector does not count."""
        before, after = (self._shapes[n][:-1] for n in (number, number + 1))
        return len(before) == len(after) and any(b <= _SHRINKS * a for a, b in zip(before, after, strict=True))

    def end(self, number: int, start: int) -> int | None:
        """Find where the block that starts with operation `start` ends, given that the map shrinks after cut `number`:
        at that cut, or at a smaller map next to it, which is cheaper to store and keeps units whole.

        Next to it means separated by 1 x 1 kernels only, such as the expansion that starts an inverted residual block
        (Sandler et al. 2018, arXiv 1801.04381), or by pooling that follows. None if the block would have no kernel.
        """
        nearby = [number]
        while nearby[0] > 0 and self._adjacent(nearby[0] - 1) and self._pointwise(nearby[0]):
            nearby.insert(0, nearby[0] - 1)
        while self._adjacent(nearby[-1]) and not getattr(self._operations[self.cuts[nearby[-1] + 1]], "weights", ()):
            nearby.append(nearby[-1] + 1)
        maps = [n for n in nearby if len(self._shapes[n]) > 1]
        end = self.cuts[min(maps, key=lambda n: (math.prod(self._shapes[n]), -n))]
        return end if any(map(_kernels, self._operations[start : end + 1])) else None

    def end_before_attention(self, number: int, start: int) -> int | None:
        """Return cut `number` if attention follows it before the next cut, and the block would have a kernel."""
        import keras

        cut, following = self.cuts[number], self._operations[self.cuts[number] + 1 : self.cuts[number + 1] + 1]
        attends = any(isinstance(each, keras.layers.MultiHeadAttention) for each in following)
        return cut if attends and any(map(_kernels, self._operations[start : cut + 1])) else None

    def _adjacent(self, number: int) -> bool:
        """Tell whether no operation lies between this cut and the next."""
        return number + 1 < len(self.cuts) and self.cuts[number + 1] == self.cuts[number] + 1

    def _pointwise(self, number: int) -> bool:
        """Tell whether a cut's operation computes each position from one input position, or from padding."""
        kernels = _kernels(self._operations[self.cuts[number]])
        return not self.shrinks(number - 1) and all(math.prod(kernel.shape[:-2]) == 1 for kernel in kernels)
