"""One update of a classifier, traced once.

Keras' `fit` traces a loop, metrics and, where it can, XLA around the same arithmetic; its first step takes three times
as long, and on a CPU its later ones, too (`python -m benchmarks finetune`). A step of our own also says which variables
learn, and each at which rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.fused_adam import UpdateRule, update_rule
from tl_research.backend.inference import Forward
from tl_research.backend.loss_scaling import LossScaling
from tl_research.backend.replicas import Replicas
from tl_research.backend.weight_average import WeightAverage

if TYPE_CHECKING:
    import keras

    from tl_research.backend.strategy import Strategy


class OutOfMemoryError(RuntimeError):
    """The memory of a device is too small for a batch."""


@dataclass(frozen=True)
class Learning:
    """A variable that follows gradients, and the factor of the stage's learning rate for it."""

    variable: keras.Variable
    rate: float = 1.0

    @property
    def decays(self) -> bool:
        """Whether weight decay shrinks it: kernels. On biases and norms 0 means nothing in particular."""
        return len(self.variable.shape) > 1


@dataclass(frozen=True)
class StepOptions:
    """`clip_norm` bounds the length of the whole gradient, `label_smoothing` is the share of a target that all classes
    divide (Szegedy et al. 2016, arXiv 1512.00567), `ema` the decay of an average of the weights, `loss_scale` whether
    the loss is scaled up so that small gradients do not vanish in float16. The loss weights each image by its class's
    `class_weights` `(k,)`, and adds `logit_offsets` `(k,)` to the logits."""

    clip_norm: float | None = None
    label_smoothing: float = 0.0
    ema: float | None = None
    loss_scale: bool = False
    class_weights: tuple[float, ...] | None = None
    logit_offsets: tuple[float, ...] | None = None


class TrainStep:
    """Updates the variables that learn, on a batch or on several whose gradients are summed first.

    Args:
        forward: the forward pass of training.
        learning: the variables that follow gradients.
        statistics: moving means and variances that `forward` itself changes; they are averaged with the weights.
        optimizer: any of Keras'; its state is in `variables`. Its rate is given with each call.
        options: see there.
        strategy: TensorFlow's, to divide batches among devices. All of the above, and the step itself, must be built in
            its scope.
        accumulates: whether a call may get several batches.
    """

    def __init__(
        self,
        forward: Forward,
        learning: Sequence[Learning],
        statistics: Sequence[keras.Variable],
        optimizer: keras.Optimizer,
        options: StepOptions = StepOptions(),
        strategy: Strategy | None = None,
        accumulates: bool = False,
    ) -> None:
        import tensorflow as tf

        self.learning, self.optimizer, self.options = learning, optimizer, options
        self.strategy, self._forward = strategy, forward
        self._decay = float(optimizer.weight_decay or 0.0)
        variables = [item.variable for item in learning]
        optimizer.build(variables)
        self._average = WeightAverage([*variables, *statistics], options.ema)
        self.averaged, self.averages = self._average.variables, self._average.averages
        sums = variables if accumulates else []
        self._sums = [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False, dtype=v.dtype) for v in sums]
        self._replicas = Replicas(strategy, variables)
        self._scaling = LossScaling(options.loss_scale, self._replicas)
        self._update_once = self._replicas.trace(self._update)
        self._add_gradients = self._replicas.trace(self._add)
        self._apply_sums = self._replicas.trace(self._apply_sum)

    @property
    def variables(self) -> list[Any]:
        """All that an update changes beside the classifier: the optimizer's state, averages, the scale of the loss."""
        return [*self.optimizer.variables, *self.averages, *self._scaling.variables]

    def __call__(self, batches: Sequence[tuple[np.ndarray, np.ndarray]], rate: float) -> tuple[Any, Any]:
        """Update by the mean gradient over all examples of `batches`, `(inputs (b, ...), targets (b, k))` each.

        Returns the sum of their losses and the number of right answers, both before the update, as scalar tensors.
        """
        import tensorflow as tf

        count = sum(len(inputs) for inputs, _ in batches)
        share, rate_ = tf.constant(1 / count, tf.float32), tf.constant(rate, tf.float32)
        if len(batches) == 1 and not self._sums:
            return self._update_once(*batches[0], share, rate_)
        results = [self._add_gradients(*batch, share) for batch in batches]
        self._apply_sums(rate_)
        return tf.add_n([loss for loss, _ in results]), tf.add_n([right for _, right in results])

    def rehearse(self, batch: tuple[np.ndarray, np.ndarray]) -> None:
        """Compute a batch's gradient without an update; only statistics and the random state of dropout change.

        Raises:
            OutOfMemoryError: memory is too small for the batch.
        """
        import tensorflow as tf

        def lengths(inputs: Any, targets: Any, share: Any) -> list[Any]:
            return [tf.reduce_sum(gradient) for gradient in self._gradients(inputs, targets, share)[2]]

        try:
            self._replicas.trace(lengths)(*batch, tf.constant(1.0))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(str(error)) from error

    # The following methods are traced; under a strategy, once for each replica.

    def _update(self, inputs: Any, targets: Any, share: Any, rate: Any) -> tuple[Any, Any]:
        loss, right, gradients = self._gradients(inputs, targets, share)
        self._apply(self._replicas.sum(gradients), rate)
        return loss, right

    def _add(self, inputs: Any, targets: Any, share: Any) -> tuple[Any, Any]:
        loss, right, gradients = self._gradients(inputs, targets, share)
        self._replicas.update(lambda i, gradient: self._sums[i].assign_add(gradient), self._replicas.sum(gradients))
        return loss, right

    def _apply_sum(self, rate: Any) -> None:
        import tensorflow as tf

        self._apply([tf.convert_to_tensor(total) for total in self._sums], rate)
        self._replicas.update(
            lambda i, zero: self._sums[i].assign(zero), [tf.zeros_like(total) for total in self._sums]
        )

    def _gradients(self, inputs: Any, targets: Any, share: Any) -> tuple[Any, Any, list[Any]]:
        """Return the sum of losses, the number of right answers, and the scaled gradients of the sum times `share`."""
        import tensorflow as tf

        inputs, targets, weight = self._replicas.own_share(inputs, targets)
        values = [item.variable.value for item in self.learning]
        smoothing = self.options.label_smoothing
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1] if smoothing else targets
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = tf.cast(self._forward(inputs), tf.float32)
            offsets, weights = self.options.logit_offsets, self.options.class_weights
            losses = tf.nn.softmax_cross_entropy_with_logits(smooth, logits if offsets is None else logits + offsets)
            losses = losses if weights is None else losses * tf.linalg.matvec(targets, weights)
            total = tf.reduce_sum(losses) * weight
            scaled = self._scaling.scale(total * share)
        gradients = tape.gradient(scaled, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == tf.argmax(targets, 1), tf.float32))
        return total, right * weight, gradients

    def _apply(self, gradients: list[Any], rate: Any) -> None:
        import tensorflow as tf

        gradients, finite = self._scaling.unscale(gradients)
        if self.options.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.options.clip_norm)
        rule = update_rule(self.optimizer)
        self._replicas.update(lambda i, gradient: self._update_variable(i, gradient, rate, rule), gradients, finite)
        self._replicas.update(lambda *_: self._finish_update(), [rate], finite)

    def _update_variable(self, i: int, gradient: Any, rate: Any, rule: UpdateRule) -> None:
        """Update one variable, its decay, and its average."""
        item = self.learning[i]
        own_rate = rate * item.rate if item.rate != 1 else rate
        if self._decay and item.decays:
            item.variable.assign(item.variable - item.variable * self._decay * own_rate)
        rule(gradient, item.variable, own_rate)
        self._average.update(i, self.optimizer.iterations.value)

    def _finish_update(self) -> None:
        """Count the update, and average the statistics."""
        self.optimizer.iterations.assign_add(1)
        for i in range(len(self.learning), len(self.averages)):
            self._average.update(i, self.optimizer.iterations.value)
