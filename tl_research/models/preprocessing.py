"""What networks were trained on: each backbone names its preprocessing, which becomes layers of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tl_research.errors import InputError

Preprocessing = Literal["none", "unit", "tf", "torch", "caffe", "lite"]

if TYPE_CHECKING:
    import keras

GRAYSCALE = "grayscale"
_LUMA = [0.299, 0.587, 0.114]
_SCALING_LAYERS = ("Rescaling", "Normalization", "BatchNormalization", "LayerNormalization")
_SCALING_OPERATIONS = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")  # as in x / 255

# ImageNet's channel statistics, RGB, 0-255, as `keras.applications.imagenet_utils` has them.
_MEAN = (123.68, 116.779, 103.939)
_TORCH_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
_TORCH_STD = tuple(255 * std for std in (0.229, 0.224, 0.225))


def preprocess(pixels: Any, how: Preprocessing | None) -> Any:
    """Map RGB 0-255 to the network's input range with built-in layers on a symbolic tensor.

    `none`, None: unchanged (the network rescales inside). `unit`: [0, 1]. `tf`: [-1, 1]. `torch`: standardized by
    ImageNet's mean and deviation. `caffe`: BGR minus ImageNet's mean. `lite`: (x - 127) / 128.
    """
    from keras import layers

    if how == "unit":
        return layers.Rescaling(1 / 255, name="preprocessing")(pixels)
    if how == "tf":
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(pixels)
    if how == "lite":
        return layers.Rescaling(1 / 128, offset=-127 / 128, name="preprocessing")(pixels)
    if how == "torch":
        scale = [1 / std for std in _TORCH_STD]
        offset = [-mean / std for mean, std in zip(_TORCH_MEAN, _TORCH_STD, strict=True)]
        return layers.Rescaling(scale, offset=offset, name="preprocessing")(pixels)
    if how == "caffe":
        centred = layers.Rescaling(1.0, offset=[-mean for mean in _MEAN], name="preprocessing")(pixels)
        return centred[..., ::-1]
    return pixels


def to_channels(pixels: Any, channels: tuple[int, ...], how: Preprocessing | None) -> Any:
    """Convert RGB `(n, s, s, 3)` to the network's `(n, s, s, *channels)`: three, one, or none at all. Gray is the luma
    that Pillow's `convert("L")` computes. Raises InputError for other numbers, and where `how` wants three."""
    import keras

    if channels == (3,):
        return pixels
    if channels not in ((1,), ()):
        raise InputError(f"the network takes images of {channels[0]} channels; it can be given 3 (RGB) or 1 (gray)")
    if how in ("torch", "caffe"):
        raise InputError(f"backbone.preprocessing={how} is for three channels, and the network takes one; give unit")
    weighted = keras.layers.Rescaling(_LUMA, name=GRAYSCALE)(pixels)
    return keras.ops.sum(weighted, axis=-1, keepdims=channels == (1,))


def scales_pixels(network: keras.Model) -> bool:
    """Return whether a network changes the range of pixels itself, before the first layer that learns from them."""
    for operation in network.operations:
        kind = type(operation).__name__
        if kind in _SCALING_LAYERS + _SCALING_OPERATIONS and operation.name != GRAYSCALE:
            return True
        if getattr(operation, "weights", None):
            return False
    return False
