"""EfficientNet-Lite0 to Lite2 as plain Keras models of built-in layers.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019 (arXiv 1905.11946).
Lite is the same network made for small machines: no squeeze-and-excitation, ReLU6 in place of swish, and the width of
stem and head and the depth of the first and last stage left unscaled. Drop-connect is left out: it needs layers that
branch the graph of every residual block, and a few hundred images do not train this network from scratch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras

STEM, HEAD = 32, 1280
BN_EPSILON = 1e-3  # TensorFlow's, which the published weights were trained with


class BlockGroup(NamedTuple):
    """Blocks in a row; the first one changes resolution and width."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int


STAGES = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
)


def efficientnet_lite(
    include_top: bool = True,
    weights: None = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    *,
    width: float,
    depth: float,
    size: int,
    name: str,
) -> keras.Model:
    """The network with random weights, scaled by `width` and `depth`; `size` is its input where none is given.

    The input is (height, width, 3) floats already scaled by (x - 127) / 128. The output is a feature map of stride 32
    with 1280 channels, pooled to a vector for `pooling` "avg" or "max", or `classes` logits with `include_top`.
    Raises InputError for other `weights` than None (`weights.load_torch` fills them in) or an unknown `pooling`.
    """
    import keras

    if weights is not None:
        raise InputError(f"{name} takes weights=None only, not {weights!r}: fill it with weights.load_torch")
    image = keras.Input(input_shape or (size, size, 3), name="image")
    x = _conv(image, STEM, 3, 2, name="stem")
    for number, stage in enumerate(STAGES, start=1):
        inner = 1 < number < len(STAGES)  # Lite leaves the depth of the first and last stage alone
        for i in range(math.ceil(stage.blocks * depth) if inner else stage.blocks):
            stride = stage.stride if i == 0 else 1
            x = _block(x, stage, stride, _round_width(stage.width * width), f"block{number}{chr(ord('a') + i)}")
    x = _conv(x, HEAD, 1, 1, name="head")
    return keras.Model(image, _top(x, include_top, pooling, classes), name=name)


# Called as the constructors of keras.applications are: EfficientNetLite0(include_top=False, input_shape=(224, 224, 3)).
EfficientNetLite0 = partial(efficientnet_lite, width=1.0, depth=1.0, size=224, name="efficientnet_lite0")
EfficientNetLite1 = partial(efficientnet_lite, width=1.0, depth=1.1, size=240, name="efficientnet_lite1")
EfficientNetLite2 = partial(efficientnet_lite, width=1.1, depth=1.2, size=260, name="efficientnet_lite2")


def _block(x: keras.KerasTensor, stage: BlockGroup, stride: int, width: int, name: str) -> keras.KerasTensor:
    """Inverted residual: expand, filter each channel, project; added to its input where the shapes agree."""
    import keras

    shortcut = x
    if stage.expand != 1:
        x = _conv(x, x.shape[-1] * stage.expand, 1, 1, name=f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(
        stage.kernel,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{name}_dw_conv",
    )(x)
    x = _bn(x, f"{name}_dw")
    x = _conv(x, width, 1, 1, name=f"{name}_project", activation=False)
    if x.shape == shortcut.shape:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _conv(
    x: keras.KerasTensor, width: int, kernel: int, stride: int, *, name: str, activation: bool = True
) -> keras.KerasTensor:
    import keras

    # TensorFlow's own "same" padding: the weights come from there, so stride 2 pads more at the end than at the start.
    x = keras.layers.Conv2D(
        width, kernel, stride, padding="same", use_bias=False, kernel_initializer=_initializer(), name=f"{name}_conv"
    )(x)
    return _bn(x, name, activation)


def _bn(x: keras.KerasTensor, name: str, activation: bool = True) -> keras.KerasTensor:
    import keras

    x = keras.layers.BatchNormalization(epsilon=BN_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu6")(x) if activation else x


def _initializer() -> keras.initializers.Initializer:
    """The paper's: He et al. by fan-out."""
    import keras

    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def _round_width(width: float) -> int:
    """The nearest multiple of 8 that loses no more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _top(x: keras.KerasTensor, include_top: bool, pooling: str | None, classes: int) -> keras.KerasTensor:
    import keras

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        return keras.layers.Dense(classes, name="logits")(x)
    if pooling is None:
        return x
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name="max_pool")(x)
    raise InputError(f"pooling={pooling!r} is not known: use 'avg', 'max' or null")
