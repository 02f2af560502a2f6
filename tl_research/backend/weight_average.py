"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


class WeightAverage:
    """Averages of `variables` that keep the share `decay` of themselves at each update; none if `decay` is None."""

    def __init__(self, variables: Sequence[keras.Variable], decay: float | None) -> None:
        self._decay = decay
        self.variables = list(variables) if decay is not None else []
        self.averages = [_copy(variable) for variable in self.variables]

    def update(self, i: int, num_updates: Any) -> None:
        """Update the average of variable `i`. Young averages are of few steps: 1/10 of the weights after the first
        update, as in TensorFlow's own."""
        import tensorflow as tf

        if self._decay is None:
            return
        steps = tf.cast(num_updates, tf.float32)
        decay = tf.minimum(self._decay, (1 + steps) / (10 + steps))
        average, value = self.averages[i], self.variables[i].value
        average.assign(average - (1 - decay) * (average - value))


def _copy(variable: keras.Variable) -> Any:
    import tensorflow as tf

    return tf.Variable(variable.numpy(), trainable=False, dtype=variable.dtype)
