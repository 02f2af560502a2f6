"""Build EfficientNet-Lite0 to Lite2 from built-in Keras layers.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019 (arXiv 1905.11946).
Lite is its variant for small machines: no squeeze-and-excitation, ReLU6 instead of swish, unscaled width of stem and
head, unscaled depth of the first and last stage. Drop-connect is omitted: it would branch the graph of every residual
block, and nobody trains this network from scratch on a few hundred images.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras

STEM, HEAD = 32, 1280
BN_EPSILON = 1e-3  # the published weights were trained with it


class BlockGroup(NamedTuple):
    """Consecutive blocks; the first changes resolution and width."""

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
    """Build the network with random weights, scaled by `width` and `depth`; `size` is the default input side.

    The input is (height, width, 3) floats already scaled by (x - 127) / 128. The output is a feature map of stride 32
    with 1280 channels, pooled to a vector for `pooling` "avg" or "max", or `classes` logits with `include_top`.
    Raises InputError for `weights` other than None (`weights.load_torch` loads them) or an unknown `pooling`.
    """
    import keras

    if weights is not None:
        raise InputError(f"{name} takes weights=None only, not {weights!r}: fill it with weights.load_torch")
    image = keras.Input(input_shape or (size, size, 3), name="image")
    x = _conv(image, STEM, 3, 2, name="stem")
    for number, stage in enumerate(STAGES, start=1):
        inner = 1 < number < len(STAGES)  # Lite does not scale the depth of the first and last stage
        for i in range(math.ceil(stage.blocks * depth) if inner else stage.blocks):
            stride = stage.stride if i == 0 else 1
            x = _block(x, stage, stride, _round_width(stage.width * width), f"block{number}{chr(ord('a') + i)}")
    x = _conv(x, HEAD, 1, 1, name="head")
    return keras.Model(image, _top(x, include_top, pooling, classes), name=name)


# Call them like constructors of keras.applications: EfficientNetLite0(include_top=False, input_shape=(224, 224, 3)).
EfficientNetLite0 = partial(efficientnet_lite, width=1.0, depth=1.0, size=224, name="efficientnet_lite0")
EfficientNetLite1 = partial(efficientnet_lite, width=1.0, depth=1.1, size=240, name="efficientnet_lite1")
EfficientNetLite2 = partial(efficientnet_lite, width=1.1, depth=1.2, size=260, name="efficientnet_lite2")


def _block(x: keras.KerasTensor, stage: BlockGroup, stride: int, width: int, name: str) -> keras.KerasTensor:
    """Add an inverted residual block: expand, depthwise convolution, project; a shortcut where the shapes agree."""
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

    # TensorFlow's "same" padding, which the weights expect: stride 2 pads more at the end than at the start.
    x = keras.layers.Conv2D(
        width, kernel, stride, padding="same", use_bias=False, kernel_initializer=_initializer(), name=f"{name}_conv"
    )(x)
    return _bn(x, name, activation)


def _bn(x: keras.KerasTensor, name: str, activation: bool = True) -> keras.KerasTensor:
    import keras

    x = keras.layers.BatchNormalization(epsilon=BN_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu6")(x) if activation else x


def _initializer() -> keras.initializers.Initializer:
    """Initialize as the paper does: He et al. by fan-out."""
    import keras

    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def _round_width(width: float) -> int:
    """Round to the nearest multiple of 8 that loses at most a tenth."""
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
