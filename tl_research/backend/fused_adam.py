"""Update a variable by TensorFlow's fused kernel for Adam. Keras writes the update as two dozen operations: half of all
operations to trace in a network of many variables, and as many passes over memory at each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

UpdateRule = Callable[[Any, Any, Any], None]
"""Updates a variable, and the optimizer's state for it: gradient, variable, rate."""


def update_rule(optimizer: keras.Optimizer) -> UpdateRule:
    """Return the update of one variable, without decay: the kernel for Adam and AdamW, Keras' own `update_step` for
    others. Call it where the update is traced, once for all variables."""
    import keras
    import tensorflow as tf

    if type(optimizer) not in (keras.optimizers.Adam, keras.optimizers.AdamW) or optimizer.amsgrad:
        return optimizer.update_step
    step = tf.cast(optimizer.iterations.value + 1, tf.float32)
    powers = tf.pow(tf.constant(optimizer.beta_1), step), tf.pow(tf.constant(optimizer.beta_2), step)

    def update(gradient: Any, variable: keras.Variable, rate: Any) -> None:
        # Keras has no public names for these; if it renames them, the first update fails.
        index = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=tf.convert_to_tensor(rate),
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )

    return update
