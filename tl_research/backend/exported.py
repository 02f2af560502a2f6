"""TensorFlow's own formats for trained networks: SavedModel and LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.start import start_backend

if TYPE_CHECKING:
    import keras


def write_saved_model(network: keras.Model, folder: Path, asset: Path) -> None:
    """Write a network, pixels uint8 `(n, s, s, 3)` -> `{"probabilities": (n, k)}`, as a SavedModel with the signature
    `serving_default` and a file as its asset. (`keras.Model.export` takes no assets.)"""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    module.asset = tf.saved_model.Asset(str(asset))
    spec = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8, name="pixels")
    module.serve = tf.function(
        lambda pixels: network(pixels, training=False), input_signature=[spec], autograph=False, jit_compile=False
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def load_saved_model(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load a SavedModel: pixels uint8 `(n, s, s, 3)` -> probabilities `(n, k)`."""
    start_backend()
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serving_default"]
    return lambda pixels: np.asarray(serve(pixels=tf.constant(pixels))["probabilities"])


def int8_options(images: np.ndarray) -> dict[str, Any]:
    """Make the options with which LiteRT's converter quantizes weights and activations to 8 bits, their ranges from
    images uint8 `(n, s, s, 3)`; input and output keep their types."""
    import tensorflow as tf

    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([image[None]] for image in images),
    }
