"""Fused updates: Adam's arithmetic on a variable by the one kernel that TensorFlow has for it. Keras writes it as two
dozen operations, which is half of what there is to trace in a network of many variables, and as many passes over
memory at each update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

UpdateRule = Callable[[Any, Any, Any], None]
"""Gradient, variable, rate: the variable, and what the optimizer keeps for it, move."""


def update_rule(optimizer: keras.Optimizer) -> UpdateRule:
    """What one update does to each variable: of Adam and AdamW the kernel, of others Keras' own `update_step`. To be
    called where the update is traced, once for all variables. Decay is no part of it."""
    import keras
    import tensorflow as tf

    if type(optimizer) not in (keras.optimizers.Adam, keras.optimizers.AdamW) or optimizer.amsgrad:
        return optimizer.update_step
    step = tf.cast(optimizer.iterations.value + 1, tf.float32)
    powers = tf.pow(tf.constant(optimizer.beta_1), step), tf.pow(tf.constant(optimizer.beta_2), step)

    def move(gradient: Any, variable: keras.Variable, rate: Any) -> None:
        # Keras has no public name for them; should it rename them, the first update tells.
        number = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[number].value.handle,
            v=optimizer._velocities[number].value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=tf.convert_to_tensor(rate),
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )

    return move
