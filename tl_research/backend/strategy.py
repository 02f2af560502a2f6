"""Several devices or machines for one run, by TensorFlow's strategies: each holds a copy of the weights and takes its
share of every batch; gradients are summed over all. Keras' `fit` cannot do it on several machines (Keras 3.15,
keras-team/keras#20585); a train step of our own can."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tl_research.backend.workers import cluster_members, wait_for_workers, worker_rank
from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

log = logging.getLogger(__name__)

Distribution = Literal["none", "mirrored", "multi_worker"]
Strategy: TypeAlias = "tf.distribute.Strategy"
"""The devices of a run, for the annotations of other rooms; they only hand it on."""


class WorkerLostError(RuntimeError):
    """Another worker has ended, and a run cannot go on without it."""


@contextmanager
def open_strategy(name: Distribution, job: str) -> Iterator[Strategy | None]:
    """Open TensorFlow's strategy, None for one device; models built inside are copied to each of its devices. Enter it
    before anything else has used a device. `job` describes the run, which must be the same on all workers.

    `mirrored` takes all GPUs of the machine, or all logical CPUs; `multi_worker` the machines in `TF_CONFIG`.

    Raises:
        InputError: `TF_CONFIG` is missing or wrong, workers have different jobs, or some did not start.
        WorkerLostError: a worker has ended meanwhile.
    """
    import keras

    if name == "none":
        yield None
        return
    keras.utils.clear_session(free_memory=False)  # inside, it would end the scope
    if name == "mirrored":
        strategy = _mirrored_strategy()
        names = [device.rpartition("device:")[2] for device in strategy.extended.worker_devices]
        log.info("mirrored on %s", ", ".join(names))
        with strategy.scope():
            yield strategy
        return
    with _report_lost_worker():
        strategy = _multi_worker_strategy()
        with strategy.scope():
            _require_same_job(strategy, job)
            yield strategy


@cache
def _mirrored_strategy() -> Strategy:
    """Create one for all runs of the process: a second would number its reductions like the first, and TensorFlow
    confuses them."""
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


@cache
def _multi_worker_strategy() -> Strategy:
    """Create the strategy of all workers, once all have started."""
    import tensorflow as tf

    wait_for_workers()
    tf.get_logger().setLevel(logging.ERROR)  # it logs each collective operation
    with _default_signals():
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextmanager
def _default_signals() -> Iterator[None]:
    """Let Ctrl-C end the process at once: while TensorFlow connects, Python handles no signals."""
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
def _report_lost_worker() -> Iterator[None]:
    """Turn TensorFlow's many lines about a lost worker into one error."""
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


def _require_same_job(strategy: Strategy, job: str) -> None:
    digests = np.zeros(len(cluster_members()[0]), np.int64)
    digests[worker_rank()] = int.from_bytes(hashlib.sha256(job.encode()).digest()[:7])
    digests = _sum_over_workers(strategy, digests)
    different = np.flatnonzero(digests != digests[0])
    if len(different):
        raise InputError(
            f"trainer.distribution=multi_worker: worker {different[0]} was given other overrides, images, weights or "
            f"code than worker 0, or one of them resumes; give all the same"
        )


def broadcast_from_chief(strategy: Strategy | None, numbers: Mapping[str, float]) -> dict[str, float]:
    """Return worker 0's numbers on all workers: clocks and last bits may differ among machines, decisions may not."""
    if not _spans_machines(strategy):
        return dict(numbers)
    values = _value_of_chief(strategy, np.array(list(numbers.values()), np.float64))
    return dict(zip(numbers, values.tolist(), strict=True))


def _spans_machines(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _value_of_chief(strategy: Any, value: np.ndarray) -> np.ndarray:
    return _sum_over_workers(strategy, value if worker_rank() == 0 else np.zeros_like(value))


def _sum_over_workers(strategy: Any, value: np.ndarray) -> np.ndarray:
    """Sum an array over all workers."""
    return strategy.experimental_local_results(_trace_sum(strategy)(value))[0].numpy()


@cache
def _trace_sum(strategy: Any) -> Any:
    import tensorflow as tf

    def each(value: Any) -> Any:
        replica = tf.distribute.get_replica_context()
        first = replica.replica_id_in_sync_group % strategy.extended._num_devices_per_worker == 0
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, value, tf.zeros_like(value)))

    return tf.function(lambda value: strategy.run(each, (tf.convert_to_tensor(value),)), autograph=False)


@contextmanager
def sync_batch_norm(strategy: Strategy | None, classifier: keras.Model) -> Iterator[None]:
    """Let functions traced inside normalize by the whole batch, not by each device's share, whose moving statistics
    would drift apart. All workers take the weights of worker 0, from which rounding may have moved theirs."""
    import keras

    if strategy is None:
        yield
        return
    layers = [layer for layer in classifier._flatten_layers() if hasattr(layer, "synchronized")]
    if _spans_machines(strategy):
        for variable in classifier.variables:
            variable.assign(_value_of_chief(strategy, keras.ops.convert_to_numpy(variable)))
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False
