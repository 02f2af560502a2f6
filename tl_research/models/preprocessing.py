"""What networks were trained on: each backbone names its preprocessing, which becomes layers of the model."""

from __future__ import annotations

from typing import Any, Literal

Preprocessing = Literal["none", "tf", "torch", "caffe", "lite"]

# ImageNet's channel statistics, RGB, 0-255, as `keras.applications.imagenet_utils` has them.
_MEAN = (123.68, 116.779, 103.939)
_TORCH_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
_TORCH_STD = tuple(255 * std for std in (0.229, 0.224, 0.225))


def preprocess(pixels: Any, how: Preprocessing) -> Any:
    """Map RGB 0-255 to the network's input range with built-in layers on a symbolic tensor.

    `none`: unchanged (the network rescales inside). `tf`: [-1, 1]. `torch`: standardized by ImageNet's mean and
    deviation. `caffe`: BGR minus ImageNet's mean. `lite`: (x - 127) / 128.
    """
    from keras import layers

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
