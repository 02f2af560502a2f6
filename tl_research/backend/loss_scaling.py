"""Dynamic loss scaling: small gradients do not vanish in float16 (Micikevicius et al. 2018, arXiv 1710.03740)."""

from __future__ import annotations

from typing import Any

from tl_research.backend.replicas import Replicas


class LossScaling:
    """A factor for the loss; if not `enabled`, it is 1."""

    def __init__(self, enabled: bool, replicas: Replicas) -> None:
        import tensorflow as tf

        self._enabled, self._replicas = enabled, replicas
        self._scale = tf.Variable(2.0**15 if enabled else 1.0, trainable=False, dtype=tf.float32)
        self._num_good = tf.Variable(0, trainable=False, dtype=tf.int64)

    @property
    def variables(self) -> list[Any]:
        """The scale, and the number of good steps since it last changed."""
        return [self._scale, self._num_good]

    def scale(self, loss: Any) -> Any:
        """Scale the loss."""
        return loss * self._scale if self._enabled else loss

    def unscale(self, gradients: list[Any]) -> tuple[list[Any], Any]:
        """Divide gradients by the scale. Returns also whether none overflowed, or None if disabled: after an overflow
        only the scale may change, which is halved. It is doubled after 2000 good steps."""
        import tensorflow as tf

        if not self._enabled:
            return gradients, None
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        gradients = [tf.where(finite, gradient / self._scale, 0.0) for gradient in gradients]
        num_good = tf.where(finite, self._num_good + 1, 0)
        growth = tf.where(num_good >= 2000, 2.0, 1.0)

        def rescale(_: int, __: Any) -> None:
            self._scale.assign(tf.where(finite, self._scale * growth, tf.maximum(self._scale / 2, 1.0)))
            self._num_good.assign(num_good % 2000)

        self._replicas.update(rescale, [finite])
        return gradients, finite
