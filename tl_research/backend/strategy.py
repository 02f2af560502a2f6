"""Several devices, or several machines, for one run, on TensorFlow's own strategies: each holds a copy of the weights
and takes its share of every batch; gradients are summed over all. Keras' `fit` cannot do it on several machines (Keras
3.15, keras-team/keras#20585); a step of our own can."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tl_research.backend.workers import cluster_members, wait_for_workers, worker_rank
from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Strategy = tf.distribute.Strategy
else:
    Strategy = Any

log = logging.getLogger(__name__)

Distribution = Literal["none", "mirrored", "multi_worker"]


class WorkerLostError(RuntimeError):
    """Another worker has gone, and a run cannot go on without it."""


@contextmanager
def open_strategy(name: Distribution, job: str) -> Iterator[tf.distribute.Strategy | None]:
    """TensorFlow's strategy; what is built inside is on each of its devices. None for one device. Enter it before
    anything else has used a device. `job` says what is to be done, which must be the same on all workers.

    `mirrored` takes all GPUs of the machine, or all logical CPUs; `multi_worker` the machines in `TF_CONFIG`.

    Raises:
        InputError: there is no good `TF_CONFIG`, or the workers were given different jobs, or some did not come.
        LostError: one of them has gone meanwhile.
    """
    import keras

    if name == "none":
        yield None
        return
    keras.utils.clear_session(free_memory=False)  # inside it would forget the scope, too
    if name == "mirrored":
        strategy = _mirrored()
        names = [device.rpartition("device:")[2] for device in strategy.extended.worker_devices]
        log.info("mirrored on %s", ", ".join(names))
        with strategy.scope():
            yield strategy
        return
    with _loss_told():
        strategy = _joined()
        with strategy.scope():
            _demand_same(strategy, job)
            yield strategy


@cache
def _mirrored() -> tf.distribute.Strategy:
    """One for all runs of the process: a second would number its reductions as the first did, and TensorFlow mixes
    them up."""
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in found])


@cache
def _joined() -> tf.distribute.Strategy:
    """The strategy of all workers, when all have come."""
    import tensorflow as tf

    wait_for_workers()
    tf.get_logger().setLevel(logging.ERROR)  # it tells of each collective operation
    with _mortal():
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextmanager
def _mortal() -> Iterator[None]:
    """While TensorFlow connects, Python handles no signals: Ctrl-C then ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _loss_told() -> Iterator[None]:
    """TensorFlow notices within seconds that a worker is silent, and says it in many lines."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        workers, index = cluster_members()
        silent = sorted({int(n) for n in re.findall(r"/job:worker/(?:replica:0/)?task:(\d+)", str(error))} - {index})
        who = f"worker {silent[0]} ({workers[silent[0]]})" if len(silent) == 1 else "another worker"
        raise WorkerLostError(
            f"{who} has ended or cannot be reached; resume=RUN, given to all, goes on from here"
        ) from error


def _demand_same(strategy: tf.distribute.Strategy, job: str) -> None:
    told = np.zeros(len(cluster_members()[0]), np.int64)
    told[worker_rank()] = int.from_bytes(hashlib.sha256(job.encode()).digest()[:7])
    told = _summed(strategy, told)
    different = np.flatnonzero(told != told[0])
    if len(different):
        raise InputError(
            f"trainer.distribution=multi_worker: worker {different[0]} was given other overrides, images, weights or "
            f"code than worker 0, or one of them resumes; give all the same"
        )


def broadcast_from_chief(strategy: tf.distribute.Strategy | None, numbers: Mapping[str, float]) -> dict[str, float]:
    """Worker 0's numbers, on all workers: clocks and last bits may differ among machines, decisions may not."""
    if not _is_of_many(strategy):
        return dict(numbers)
    values = _of_first(strategy, np.array(list(numbers.values()), np.float64))
    return dict(zip(numbers, values.tolist(), strict=True))


def _is_of_many(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _of_first(strategy: Any, value: np.ndarray) -> np.ndarray:
    return _summed(strategy, value if worker_rank() == 0 else np.zeros_like(value))


def _summed(strategy: Any, value: np.ndarray) -> np.ndarray:
    """The sum of what all workers give."""
    return strategy.experimental_local_results(_summing(strategy)(value))[0].numpy()


@cache
def _summing(strategy: Any) -> Any:
    import tensorflow as tf

    def each(value: Any) -> Any:
        replica = tf.distribute.get_replica_context()
        first = replica.replica_id_in_sync_group % strategy.extended._num_devices_per_worker == 0
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, value, tf.zeros_like(value)))

    return tf.function(lambda value: strategy.run(each, (tf.convert_to_tensor(value),)), autograph=False)


@contextmanager
def sync_batch_norm(strategy: tf.distribute.Strategy | None, classifier: keras.Model) -> Iterator[None]:
    """What is traced inside normalizes by the whole batch, not by each device's share, whose kept statistics would
    drift apart. Workers that have come here by sums in another order begin with the weights of the first."""
    import keras

    if strategy is None:
        yield
        return
    parts = [layer for layer in classifier.layers if hasattr(layer, "layers")]
    layers = [layer for part in parts for layer in part.layers if hasattr(layer, "synchronized")]
    if _is_of_many(strategy):
        for variable in classifier.variables:
            variable.assign(_of_first(strategy, keras.ops.convert_to_numpy(variable)))
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False
