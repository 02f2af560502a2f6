"""Build a network of a few thousand weights with the layers of real ones, for tests and for trying a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def Tiny(  # noqa: N802 - named like the constructors in keras.applications
    *, include_top: bool = False, weights: None = None, input_shape: tuple[int, int, int], **_: Any
) -> keras.Model:
    """Build strided convolutions, batch norm, a residual and a depthwise block: `(s, s, 3)` -> `(s/8, s/8, 32)`."""
    import keras

    layers = keras.layers

    def conv(x: Any, filters: int, stride: int, name: str) -> Any:
        x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    inputs = keras.Input(input_shape)
    x = conv(inputs, 8, 2, "block1")
    x = conv(x, 16, 2, "block2")
    x = layers.Add(name="block2_add")([x, conv(x, 16, 1, "block2b")])
    x = layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False, name="block3_depthwise")(x)
    x = layers.BatchNormalization(name="block3_depthwise_bn")(x)
    x = conv(x, 32, 1, "block3")
    return keras.Model(inputs, x, name="tiny")
