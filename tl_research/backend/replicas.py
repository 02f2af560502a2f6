"""The copies of a train step: one on each device of a strategy, or a single one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tl_research.backend.inference import trace_any_batch_size

if TYPE_CHECKING:
    import keras

    from tl_research.backend.strategy import Strategy


class Replicas:
    """Divides batches among devices, sums over them, and changes variables on all of them.

    Args:
        strategy: TensorFlow's; None for one device.
        variables: the variables that learn, one for each gradient.
    """

    def __init__(self, strategy: Strategy | None, variables: Sequence[keras.Variable]) -> None:
        self._strategy, self._variables = strategy, variables

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Trace a function that every replica runs on the same arguments; its results are summed over replicas."""
        strategy = self._strategy
        if strategy is None:
            return trace_any_batch_size(function)

        def run(*arguments: Any) -> Any:
            results = strategy.run(function, arguments)
            return None if results is None else [strategy.reduce("SUM", part, axis=None) for part in results]

        return trace_any_batch_size(run)

    # The following methods are called while a function is traced, once for each replica.

    def own_share(self, inputs: Any, targets: Any) -> tuple[Any, Any, Any]:
        """Return this replica's examples of a batch, and their weight. All replicas get the whole batch, so that one
        trace does for all sizes. Of a batch too small to be divided each takes all examples with a part of the weight,
        for from no examples some convolutions compute a wrong shape (oneDNN, TensorFlow 2.21)."""
        import tensorflow as tf

        if self._strategy is None:
            return inputs, targets, 1.0
        replica = tf.distribute.get_replica_context()
        number, count = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
        size = tf.shape(inputs)[0]
        rows = tf.cond(size < count, lambda: tf.range(size), lambda: tf.range(number, size, count))
        return tf.gather(inputs, rows), tf.gather(targets, rows), tf.where(size < count, 1 / count, 1.0)

    def sum(self, gradients: list[Any]) -> list[Any]:
        """Sum gradients over all replicas."""
        import tensorflow as tf

        if self._strategy is None:
            return gradients
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def update(self, change: Callable[[int, Any], None], values: list[Any], when: Any = None) -> None:
        """Call `change(i, value)` for each value, on every device that holds a copy of the variables; with `when`, a
        boolean tensor, only where that is true."""
        import tensorflow as tf

        def changed(i: int, value: Any) -> bool:
            change(i, value)
            return True

        def call(i: int, value: Any) -> None:
            if when is None:
                change(i, value)
            else:
                tf.cond(when, lambda: changed(i, value), lambda: False)

        if self._strategy is None:
            for i, value in enumerate(values):
                call(i, value)
            return

        def merged(strategy: Any, values: list[Any]) -> None:
            for i, value in enumerate(values):
                variable = self._variables[i].value
                strategy.extended.update(variable, lambda _, v, i=i: call(i, v), args=(value,), group=False)

        tf.distribute.get_replica_context().merge_call(merged, args=(values,))
