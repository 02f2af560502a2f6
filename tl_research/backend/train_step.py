"""Step: one update of a classifier, traced once.

Keras' `fit` traces a loop, metrics and, where it can, XLA around the same arithmetic; its first step takes three times
as long, and on a CPU its later ones, too (`python -m benchmarks finetune`). A step of our own also says which variables
learn, and each at which rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.fused_adam import UpdateRule, update_rule
from tl_research.backend.inference import Forward, trace_any_batch_size

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class OutOfMemoryError(RuntimeError):
    """The memory of a device is too small for a batch."""


@dataclass(frozen=True)
class Learning:
    """A variable that follows gradients, and what the stage's rate is multiplied by for it."""

    variable: keras.Variable
    rate: float = 1.0

    @property
    def decays(self) -> bool:
        """Whether weight decay shrinks it: kernels. On biases and norms 0 means nothing in particular."""
        return len(self.variable.shape) > 1


@dataclass(frozen=True)
class StepOptions:
    """`clip_norm` bounds the length of the whole gradient, `label_smoothing` is the share of a target that all classes
    divide (Szegedy et al. 2016, arXiv 1512.00567), `ema` how much of an average of the weights stays at each update,
    `loss_scale` whether the loss is scaled up so that small gradients do not vanish in float16."""

    clip_norm: float | None = None
    label_smoothing: float = 0.0
    ema: float | None = None
    loss_scale: bool = False


class TrainStep:
    """Updates what learns on a batch, or on several whose gradients are summed first.

    Args:
        forward: the classifier as it is trained.
        learning: what follows gradients.
        statistics: moving means and variances that `forward` itself moves; their average is kept beside the weights'.
        optimizer: any of Keras'; its state is `variables`. Its rate is given with each call.
        options: see there.
        strategy: TensorFlow's, if batches are to be divided among devices. All above, and the step itself, are made
            in its scope.
    """

    def __init__(
        self,
        forward: Forward,
        learning: Sequence[Learning],
        statistics: Sequence[keras.Variable],
        optimizer: keras.Optimizer,
        options: StepOptions = StepOptions(),
        strategy: tf.distribute.Strategy | None = None,
        accumulates: bool = False,
    ) -> None:
        import tensorflow as tf

        self.learning, self.optimizer, self.options = list(learning), optimizer, options
        self._forward, self.strategy = forward, strategy
        self._decay = float(optimizer.weight_decay or 0.0)
        optimizer.build([item.variable for item in learning])
        followed = [item.variable for item in learning] + list(statistics)
        self.averaged = followed if options.ema is not None else []
        self.averages = [_like(variable, variable) for variable in self.averaged]
        self._sums = [_like(item.variable, None) for item in learning] if accumulates else []
        self._scale = tf.Variable(2.0**15 if options.loss_scale else 1.0, trainable=False, dtype=tf.float32)
        self._good = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._update_once = self._traced(self._update)
        self._add_gradients = self._traced(self._add)
        self._apply_sums = self._traced(self._apply_sum)

    @property
    def variables(self) -> list[Any]:
        """All that an update changes beside the classifier: the optimizer's state, averages, the scale of the loss."""
        return [*self.optimizer.variables, *self.averages, self._scale, self._good]

    def __call__(self, batches: Sequence[tuple[np.ndarray, np.ndarray]], rate: float) -> tuple[tf.Tensor, tf.Tensor]:
        """One update by the mean gradient over all examples of `batches`, `(inputs (b, ...), targets (b, k))` each.

        Returns the sum of their losses, and how many were answered rightly, both before the update.
        """
        import tensorflow as tf

        count = sum(len(inputs) for inputs, _ in batches)
        share, rate_ = tf.constant(1 / count, tf.float32), tf.constant(rate, tf.float32)
        if len(batches) == 1 and not self._sums:
            return self._update_once(*batches[0], share, rate_)
        told = [self._add_gradients(*batch, share) for batch in batches]
        self._apply_sums(rate_)
        return tf.add_n([loss for loss, _ in told]), tf.add_n([right for _, right in told])

    def rehearse(self, batch: tuple[np.ndarray, np.ndarray]) -> None:
        """Compute a batch's gradient without an update; only statistics and the random state of dropout change.

        Raises:
            OutOfMemoryError: memory is too small for the batch.
        """
        import tensorflow as tf

        def lengths(inputs: Any, targets: Any, share: Any) -> list[Any]:
            return [tf.reduce_sum(gradient) for gradient in self._gradients(inputs, targets, share)[2]]

        try:
            self._traced(lengths)(*batch, tf.constant(1.0))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(str(error)) from error

    def _traced(self, function: Callable[..., Any]) -> Any:
        strategy = self.strategy

        def everywhere(*arguments: Any) -> Any:
            if strategy is None:
                return function(*arguments)
            told = strategy.run(function, arguments)
            return None if told is None else [strategy.reduce("SUM", part, axis=None) for part in told]

        return trace_any_batch_size(everywhere)

    # What follows is traced; under a strategy, once for each replica.

    def _own(self, inputs: Any, targets: Any) -> tuple[Any, Any, Any]:
        """This replica's examples of a batch that all are given, and their weight: so one trace does for all sizes. Of
        a batch too small to be divided each takes all, for a part of the weight: no replica is left with nothing, of
        which some convolutions make a wrong shape (oneDNN, TensorFlow 2.21)."""
        import tensorflow as tf

        if self.strategy is None:
            return inputs, targets, 1.0
        replica = tf.distribute.get_replica_context()
        number, count = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
        size = tf.shape(inputs)[0]
        rows = tf.cond(size < count, lambda: tf.range(size), lambda: tf.range(number, size, count))
        return tf.gather(inputs, rows), tf.gather(targets, rows), tf.where(size < count, 1 / count, 1.0)

    def _update(self, inputs: Any, targets: Any, share: Any, rate: Any) -> tuple[Any, Any]:
        loss, right, gradients = self._gradients(inputs, targets, share)
        self._apply(self._reduced(gradients), rate)
        return loss, right

    def _add(self, inputs: Any, targets: Any, share: Any) -> tuple[Any, Any]:
        loss, right, gradients = self._gradients(inputs, targets, share)
        self._everywhere(lambda i, gradient: self._sums[i].assign_add(gradient), self._reduced(gradients))
        return loss, right

    def _apply_sum(self, rate: Any) -> None:
        import tensorflow as tf

        self._apply([tf.convert_to_tensor(total) for total in self._sums], rate)
        self._everywhere(lambda i, zero: self._sums[i].assign(zero), [tf.zeros_like(total) for total in self._sums])

    def _gradients(self, inputs: Any, targets: Any, share: Any) -> tuple[Any, Any, list[Any]]:
        """Sum of losses, number of right answers, and the gradients of the sum times `share`."""
        import tensorflow as tf

        inputs, targets, weight = self._own(inputs, targets)
        values = [item.variable.value for item in self.learning]
        smoothing = self.options.label_smoothing
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1] if smoothing else targets
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = tf.cast(self._forward(inputs), tf.float32)
            losses = tf.nn.softmax_cross_entropy_with_logits(smooth, logits)
            total = tf.reduce_sum(losses) * weight
            scaled = total * share * self._scale if self.options.loss_scale else total * share
        gradients = tape.gradient(scaled, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == tf.argmax(targets, 1), tf.float32))
        return total, right * weight, gradients

    def _reduced(self, gradients: list[Any]) -> list[Any]:
        """Summed over all replicas."""
        import tensorflow as tf

        if self.strategy is None:
            return gradients
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def _apply(self, gradients: list[Any], rate: Any) -> None:
        import tensorflow as tf

        finite = None
        if self.options.loss_scale:
            gradients, finite = self._unscaled(gradients)
        if self.options.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.options.clip_norm)
        move = update_rule(self.optimizer)
        self._everywhere(lambda i, gradient: self._move(i, gradient, rate, move), gradients, finite)
        self._everywhere(lambda *_: self._count(), [rate], finite)

    def _unscaled(self, gradients: list[Any]) -> tuple[list[Any], Any]:
        """Gradients without the scale of the loss, and whether none overflowed. Where one did, nothing is to move but
        the scale, which is halved; it is doubled after 2000 good steps (Micikevicius et al. 2018, arXiv 1710.03740)."""
        import tensorflow as tf

        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        gradients = [tf.where(finite, gradient / self._scale, 0.0) for gradient in gradients]
        good = tf.where(finite, self._good + 1, 0)
        grown = tf.where(good >= 2000, 2.0, 1.0)

        def rescale(_: int, __: Any) -> None:
            self._scale.assign(tf.where(finite, self._scale * grown, tf.maximum(self._scale / 2, 1.0)))
            self._good.assign(good % 2000)

        self._everywhere(rescale, [finite])
        return gradients, finite

    def _everywhere(self, change: Callable[[int, Any], None], values: list[Any], when: Any = None) -> None:
        """Calls `change(i, value)` for each value, on every device that holds a copy of what it changes; with `when`,
        a boolean tensor, only where that is true."""
        import tensorflow as tf

        def changed(i: int, value: Any) -> bool:
            change(i, value)
            return True

        def call(i: int, value: Any) -> None:
            if when is None:
                change(i, value)
            else:
                tf.cond(when, lambda: changed(i, value), lambda: False)

        if self.strategy is None:
            for i, value in enumerate(values):
                call(i, value)
            return

        def merged(strategy: Any, values: list[Any]) -> None:
            for i, value in enumerate(values):
                place = self.learning[i].variable.value
                strategy.extended.update(place, lambda _, v, i=i: call(i, v), args=(value,), group=False)

        tf.distribute.get_replica_context().merge_call(merged, args=(values,))

    def _move(self, i: int, gradient: Any, rate: Any, move: UpdateRule) -> None:
        """One variable, its decay, and its average."""
        item = self.learning[i]
        own = rate * item.rate if item.rate != 1 else rate
        if self._decay and item.decays:
            item.variable.assign(item.variable - item.variable * self._decay * own)
        move(gradient, item.variable, own)
        if self.averages:
            self._average(i)

    def _count(self) -> None:
        """What is done once an update."""
        self.optimizer.iterations.assign_add(1)
        for i in range(len(self.learning), len(self.averages)):
            self._average(i)

    def _average(self, i: int) -> None:
        """Young averages are of few steps: 1/10 of the weights after the first, as in TensorFlow's own."""
        import tensorflow as tf

        assert self.options.ema is not None
        steps = tf.cast(self.optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self.options.ema, (1 + steps) / (10 + steps))
        average, now = self.averages[i], self.averaged[i].value
        average.assign(average - (1 - decay) * (average - now))


def _like(variable: keras.Variable, start: keras.Variable | None) -> tf.Variable:
    """A variable beside another: with its value, or zeros."""
    import tensorflow as tf

    value = tf.zeros(variable.shape, variable.dtype) if start is None else start.numpy()
    return tf.Variable(value, trainable=False, dtype=variable.dtype)
