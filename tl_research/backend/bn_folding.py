"""Fold frozen batch norm into convolutions: normalization by fixed statistics multiplies each channel and adds to it,
which the convolution below can do with a scaled kernel and a bias (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
It is common in inference; in training it saves passes over feature maps, which take most of a CPU's time."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def fold_batch_norm(network: keras.Model, learning: Collection[keras.Variable] = ()) -> keras.Model:
    """Return the same function of the same variables, with frozen batch norm folded into the convolutions below it.
    Variables in `learning` learn as before: gradients flow through a scaled kernel to the kernel itself. Batch norm
    with variables that learn is not folded.

    The result differs from `network`'s by rounding: multiplications are done in another order. It holds for the layers'
    present `trainable` flags; fold again after `set_trainable`.
    """
    import keras

    learns = {id(variable) for variable in learning}
    below: dict[int, tuple[Any, Any]] = {}
    """Convolutions and their inputs, by the id of their output."""

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        if _normalizes_by_constants(layer, learns) and id(inputs[0]) in below:
            convolution, maps = below[id(inputs[0])]
            return _folded(convolution, layer)(maps)
        output = layer(*inputs, **options)
        if _is_plain_convolution(layer):
            below[id(output)] = layer, inputs[0]
        return output

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def _normalizes_by_constants(layer: Any, learns: Collection[int]) -> bool:
    import keras

    if type(layer) is not keras.layers.BatchNormalization or layer.trainable or layer.axis not in (-1, 3):
        return False
    return not any(id(variable) in learns for variable in layer.weights)


def _is_plain_convolution(layer: Any) -> bool:
    import keras

    plain = type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    return plain and layer.activation is keras.activations.linear and layer.data_format == "channels_last"


def _folded(convolution: Any, norm: Any) -> keras.Operation:
    """Return one operation for both: feature maps -> feature maps."""
    import keras
    import tensorflow as tf
    from keras import ops

    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    convolve = ops.depthwise_conv if depthwise else ops.conv

    class Folded(keras.Operation):
        def call(self, maps: Any) -> Any:
            scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            scale = scale * norm.gamma if norm.scale else scale
            bias = (convolution.bias - norm.moving_mean if convolution.use_bias else -norm.moving_mean) * scale
            bias = bias + norm.beta if norm.center else bias
            kernel = convolution.kernel * (ops.reshape(scale, convolution.kernel.shape[2:]) if depthwise else scale)
            dtype = convolution.compute_dtype
            output = convolve(
                ops.cast(maps, dtype),
                ops.cast(kernel, dtype),
                strides=convolution.strides,
                padding=convolution.padding,
                data_format=convolution.data_format,
                dilation_rate=convolution.dilation_rate,
            )
            return tf.nn.bias_add(output, ops.cast(bias, dtype))

        def compute_output_spec(self, maps: Any) -> Any:
            return keras.KerasTensor(convolution.compute_output_shape(maps.shape), dtype=convolution.compute_dtype)

    return Folded(name=f"{convolution.name}_folded")
