"""Blocks: the parts of a backbone between two cuts, found in its graph. They are what is unfrozen, what gets a learning
rate of its own, and where a backbone is split into a part that is run once and a part that learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_SHRINKS = 2 / 3  # of its side: 113 -> 56 and 3 -> 2 begin a block; 149 -> 147, the border of a convolution, does not


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

    @property
    def num_parameters(self) -> int:
        """Its weights, trainable or not, number by number."""
        return sum(math.prod(weight.shape) for layer in self.layers for weight in layer.weights)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What it gives for one image: `(h, w, c)`, or `(d,)` if it pools."""
        return tuple(self.operations[-1].output.shape[1:])


def find_blocks(backbone: keras.Model) -> list[Block]:
    """A backbone's blocks in order, from its graph alone.

    A cut is an operation through which every path from input to output passes, so a residual or inception block is
    never cut. A block ends where the feature map shrinks next, see `_Graph.end`. Each has a kernel to learn: what only
    scales pixels belongs to the first block, the pooling behind the last map to the last.
    """
    graph = _Graph(backbone)
    operations = backbone.operations
    ends: list[int] = []
    for number in range(len(graph.cuts) - 1):
        if graph.shrinks(number):
            start = ends[-1] + 1 if ends else 0
            end = graph.end(number, start)
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
    """A backbone as two models below and above its top `unfreeze` blocks: `prefix`, pixels `(n, s, s, 3)` -> feature
    map `(n, h, w, c)`, and `tail`, that map -> features `(n, d)`.

    Both are made of the backbone's own layers: what the tail learns the backbone has learned. In inference
    `tail(prefix(x))` gives the bits of `backbone(x)`. The backbone itself stays as it is.

    Raises:
        ValueError: a part would have no block; `unfreeze` is neither 0 nor the number of blocks or more.
    """
    import keras

    parts = find_blocks(backbone)
    if not 0 < unfreeze < len(parts):
        raise ValueError(f"unfreeze={unfreeze}: {backbone.name} has {len(parts)} blocks, each part needs one")
    (call,) = _calls(backbone)[id(parts[-unfreeze - 1].operations[-1])]
    (feature_map,) = call.outputs
    prefix = keras.Model(backbone.input, feature_map, name="prefix")
    # A model made straight from the inner tensor would have an input whose name depends on what else was built.
    cached = keras.Input(feature_map.shape[1:], dtype=feature_map.dtype, name="map")
    features = keras.Function.call(keras.Function(feature_map, backbone.output), cached)
    return prefix, keras.Model(cached, features, name="tail")


def multiply_accumulates(backbone: keras.Model) -> list[int]:
    """What each block computes for one image, in multiplications with the addition that follows.

    A kernel, of whatever convolution (grouped, depthwise, separable) or dense layer, is used once for each position of
    the layer's output. Normalization, activations and pooling are not counted, as is usual.
    """
    calls = _calls(backbone)
    return [
        sum(_macs(operation, calls[id(operation)]) for operation in block.operations) for block in find_blocks(backbone)
    ]


def _macs(operation: Any, calls: list[Any]) -> int:
    if hasattr(operation, "layers"):  # a model inside: its layers' maps are not of its output's size
        inner = _calls(operation)
        return len(calls) * sum(_macs(layer, inner[id(layer)]) for layer in operation.layers)
    weights = sum(math.prod(kernel.shape) for kernel in _kernels(operation))
    return sum(weights * math.prod(call.outputs[0].shape[1:-1]) for call in calls) if weights else 0


def _kernels(operation: Any) -> list[Any]:
    """The weights that take part in a multiplication by a matrix: the others are vectors, one number a channel."""
    return [weight for weight in getattr(operation, "weights", ()) if len(weight.shape) > 1]


def _calls(model: Any) -> dict[int, list[Any]]:
    """The calls (Keras' nodes) in this model's own graph, by the id of the operation that is called. Operations also
    know those in other models' graphs: that of a classifier, those that `split` has made."""
    found: dict[int, list[Any]] = {}
    graph = getattr(model, "_functional", model)  # that of a Sequential
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for call in graph._nodes_by_depth[depth]:
            found.setdefault(id(call.operation), []).append(call)
    return found


class _Graph:
    """A backbone's graph. `cuts` are the indices, in topological order, of the operations that every path crosses."""

    def __init__(self, backbone: keras.Model):
        self._operations = backbone.operations
        self._calls = _calls(backbone)
        self.cuts = list(self._find_cuts())

    def _find_cuts(self) -> Iterator[int]:
        """After such an operation no earlier output is still waiting to be used."""
        position = {id(operation): index for index, operation in enumerate(self._operations)}
        furthest = list(range(len(position)))  # the last operation that an output flows into
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
        """Of each cut's output, without the batch."""
        return [self._calls[id(self._operations[cut])][0].outputs[0].shape[1:] for cut in self.cuts]

    def shrinks(self, number: int) -> bool:
        """Whether the map has become smaller at the cut after this one; a pooling to a vector does not count."""
        before, after = (self._shapes[n][:-1] for n in (number, number + 1))
        return len(before) == len(after) and any(b <= _SHRINKS * a for a, b in zip(before, after, strict=True))

    def end(self, number: int, start: int) -> int | None:
        """Where the block that begins with operation `start` ends, if the map shrinks after a cut: there, or at a
        smaller map beside it, which is cheaper to keep, and leaves together what belongs together.

        Beside it is what only 1 x 1 kernels part from it, such as the expansion that begins an inverted residual block
        (Sandler et al. 2018, arXiv 1801.04381), and the pooling that follows. None if no kernel is left for the block.
        """
        beside = [number]
        while beside[0] > 0 and self._adjacent(beside[0] - 1) and self._pointwise(beside[0]):
            beside.insert(0, beside[0] - 1)
        while self._adjacent(beside[-1]) and not getattr(self._operations[self.cuts[beside[-1] + 1]], "weights", ()):
            beside.append(beside[-1] + 1)
        maps = [n for n in beside if len(self._shapes[n]) > 1]
        end = self.cuts[min(maps, key=lambda n: (math.prod(self._shapes[n]), -n))]
        return end if any(map(_kernels, self._operations[start : end + 1])) else None

    def _adjacent(self, number: int) -> bool:
        """Whether nothing lies between this cut and the next."""
        return number + 1 < len(self.cuts) and self.cuts[number + 1] == self.cuts[number] + 1

    def _pointwise(self, number: int) -> bool:
        """Whether a cut's operation makes each position from the one below it alone, or from padding."""
        kernels = _kernels(self._operations[self.cuts[number]])
        return not self.shrinks(number - 1) and all(math.prod(kernel.shape[:-2]) == 1 for kernel in kernels)
