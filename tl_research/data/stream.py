"""Orders of examples as `tf.data` streams: the order of an epoch is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def numbered_batches(indices: np.ndarray, batch_size: int, shuffle: int | None) -> tf.data.Dataset:
    """Batches `(indices, epoch)`, int64 `(b,)` each; all indices once an epoch, in their order, or shuffled by the seed
    `shuffle`.

    TensorFlow's own shuffle keeps its state in a buffer, so that the second epoch depends on how the first was read.
    """
    import tensorflow as tf

    epochs = iter(range(2**31))

    def order() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        epoch = next(epochs)  # called once when an epoch begins
        chosen = indices if shuffle is None else np.random.default_rng((shuffle, epoch)).permutation(indices)
        for start in range(0, len(chosen), batch_size):
            batch = chosen[start : start + batch_size]
            yield batch, np.full(len(batch), epoch)

    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.int64))
    stream = tf.data.Dataset.from_generator(order, output_signature=signature)
    return stream.apply(tf.data.experimental.assert_cardinality(-(-len(indices) // batch_size)))


def batches_of_indices(indices: np.ndarray, batch_size: int, shuffle: int | None) -> tf.data.Dataset:
    """`numbered_batches` without the number of the epoch."""
    return numbered_batches(indices, batch_size, shuffle).map(lambda batch, _: batch)


def rows(features: np.ndarray, labels: np.ndarray, batch_size: int, shuffle: int | None = None) -> tf.data.Dataset:
    """Batches `(features (b, d), labels (b,))` of arrays in memory."""
    import tensorflow as tf

    table, answers = tf.constant(features), tf.constant(labels, tf.int32)
    stream = batches_of_indices(np.arange(len(labels)), batch_size, shuffle)
    return stream.map(lambda batch: (tf.gather(table, batch), tf.gather(answers, batch))).prefetch(2)
