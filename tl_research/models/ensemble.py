"""Join classifiers to one that answers with their mean probability."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from tl_research.models.resampling import resize_matrix

if TYPE_CHECKING:
    import keras

Member = tuple["keras.Model | None", "keras.Model"]
"""A classifier of an ensemble, and what makes its input from the ensemble's; None where that is the same."""


def build_ensemble(classifiers: Sequence[keras.Model]) -> keras.Model:
    """Build pixels `(n, s, s, 3)` of the largest input size, RGB 0-255 -> logits `(n, k)`, whose softmax is the mean of
    the classifiers' probabilities: the logarithm of that mean."""
    import keras
    from keras import ops

    size = max(classifier.input_shape[1] for classifier in classifiers)
    pixels = keras.Input((size, size, 3), name="pixels")
    logs = []
    for number, classifier in enumerate(classifiers):
        own_size = classifier.input_shape[1]
        resized = pixels if own_size == size else _resize(size, own_size, f"resize{number}")(pixels)
        member = keras.Model(classifier.input, classifier.output, name=f"member{number}")
        logs.append(ops.log_softmax(member(resized)))
    largest = reduce(ops.maximum, logs)  # taken out of the sum, for exp(-200) is 0
    mean = sum(ops.exp(log - largest) for log in logs) / len(logs)
    return keras.Model(pixels, ops.log(mean) + largest, name="ensemble")


def _resize(size: int, smaller: int, name: str) -> keras.Model:
    """Build Pillow's bicubic resize as two matrix products: every runtime has these, few have a resize that is the
    same in all."""
    import keras

    weights = resize_matrix(size, smaller).T
    layers = [  # the columns first, and no value beyond the range after either, as Pillow does
        keras.layers.EinsumDense("nhwc,wi->nhic", (size, smaller, 3), name="columns", dtype="float32"),
        keras.layers.ReLU(255.0, name="columns_range"),
        keras.layers.EinsumDense("nhwc,hi->niwc", (smaller, smaller, 3), name="rows", dtype="float32"),
        keras.layers.ReLU(255.0, name="rows_range"),
    ]
    model = keras.Sequential([keras.Input((size, size, 3)), *layers], name=name)
    for layer in layers[::2]:
        layer.set_weights([weights])
    model.trainable = False
    return model


def ensemble_members(model: keras.Model) -> list[Member]:
    """List the classifiers of an ensemble; none for another model."""
    layers = {layer.name: layer for layer in model.layers}
    if model.name != "ensemble":
        return []
    count = sum(name.startswith("member") for name in layers)
    return [(layers.get(f"resize{number}"), layers[f"member{number}"]) for number in range(count)]
