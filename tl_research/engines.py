"""Engines run the frozen part of a network: batches of pixels in, features out, nothing learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

Engine = Callable[[np.ndarray], np.ndarray]
"""Pixels uint8 `(BATCH, s, s, 3)` -> features float32 `(BATCH, d)`."""

BATCH = 16
"""The one batch shape ever run, the last batch padded: kernels, and so the last bits, may differ between shapes."""


def keras_engine(backbone: keras.Model) -> Engine:
    """The network as TensorFlow runs it, in inference mode, traced once."""
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec((BATCH, *backbone.input_shape[1:]), tf.uint8)],
        autograph=False,
        jit_compile=False,
    )
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return backbone(tf.cast(pixels, tf.float32), training=False)

    return lambda pixels: np.asarray(forward(pixels))
