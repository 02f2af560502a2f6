"""Traced functions: a forward pass for batches of any or of a fixed size, and a network's graph for other engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

Forward = Callable[[Any], Any]
"""Inputs `(b, ...)` -> logits `(b, k)`."""


def trace_any_batch_size(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace a function of arrays whose first dimension is the batch, at its first call and never again: the last batch
    of an epoch is smaller than the others."""
    import tensorflow as tf

    # No XLA: on a CPU it makes depthwise convolutions eight times slower.
    traced = tf.function(function, autograph=False, jit_compile=False)
    concrete: list[Any] = []

    def call(*arguments: Any) -> Any:
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        if not concrete:
            shapes = [[None, *tensor.shape[1:]] if tensor.shape.rank else [] for tensor in tensors]
            specs = [tf.TensorSpec(shape, tensor.dtype) for shape, tensor in zip(shapes, tensors, strict=True)]
            concrete.append(traced.get_concrete_function(*specs))
        return concrete[0](*tensors)

    return call


def compile_forward(forward: Forward) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a forward pass to a function of arrays: inputs `(b, ...)` -> logits float32 `(b, k)`."""
    call = trace_any_batch_size(forward)
    return lambda inputs: np.asarray(call(inputs), np.float32)


def compile_network(network: keras.Model, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a network in inference mode for one batch size: pixels uint8 `(batch_size, s, s, 3)` -> its output."""
    import tensorflow as tf

    traced = tf.function(
        lambda pixels: network(tf.cast(pixels, tf.float32), training=False),
        input_signature=[tf.TensorSpec((batch_size, *network.input_shape[1:]), tf.uint8)],
        autograph=False,
        jit_compile=False,
    )
    return lambda pixels: np.asarray(traced(pixels))


@dataclass(frozen=True)
class Graph:
    """A network as a serialized TensorFlow `GraphDef`. Its first input are the pixels, uint8; the others are its
    variables, by the name of the tensor."""

    definition: bytes
    variables: dict[str, keras.Variable]


def export_graph(network: keras.Model, batch_size: int | None) -> Graph:
    """Trace a network in inference mode, for one batch size or any (None), with its weights as inputs. TensorFlow can
    make constants of them, but copies and optimizes the whole graph for it, which takes ResNet50 four seconds more and
    gives the same bits."""
    import tensorflow as tf

    variables = [*network.trainable_variables, *network.non_trainable_variables]
    split = len(network.trainable_variables)

    def forward(pixels: Any, *weights: Any) -> Any:
        pixels = tf.cast(pixels, tf.float32)
        return network.stateless_call(weights[:split], weights[split:], pixels, training=False)[0]

    specs = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
    pixels = tf.TensorSpec((batch_size, *network.input_shape[1:]), tf.uint8)
    traced = tf.function(forward, input_signature=[pixels, *specs], autograph=False, jit_compile=False)
    concrete = traced.get_concrete_function()
    # The inputs behind the weights are the states of dropout, which does nothing here.
    inputs = concrete.inputs[1 : 1 + len(variables)]
    named = {tensor.name: variable for tensor, variable in zip(inputs, variables, strict=True)}
    return Graph(concrete.graph.as_graph_def().SerializeToString(), named)


def class_gradients(function: Forward, maps: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the gradient of each image's logit of its class, `classes` `(b,)`, with respect to feature maps
    `(b, h, w, c)`, of which `function` computes the logits."""
    import tensorflow as tf

    inputs = tf.convert_to_tensor(maps)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        chosen = tf.gather(function(inputs), classes, batch_dims=1)
    return np.asarray(tape.gradient(chosen, inputs))
