"""Engines run the frozen part of a network: batches of pixels in, features out, nothing learns."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tl_research.errors import InputError
from tl_research.system.hardware import processor

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

ENGINES_VERSION = "110c2864e64a20d0"
"""Change it, to any other text, when an engine gives another row for the same pixels, if only in the last bits:
features that were stored before are then not found any more. (The first value is a hash of this file's text at commit
aeace94, so that what was stored then is found.)"""

EngineName = Literal["auto", "openvino", "keras"]

Engine = Callable[[np.ndarray], np.ndarray]
"""Pixels uint8 `(BATCH, s, s, 3)` -> features float32 `(BATCH, d)`; several threads may call it at once."""

BATCH = 16
"""The one batch shape ever run, the last batch padded: kernels, and so the last bits, may differ between shapes."""


def choose_engine(name: EngineName) -> Literal["openvino", "keras"]:
    """`auto` is OpenVINO where only a CPU is there, TensorFlow on a GPU.

    Raises InputError for `openvino` where the package is not installed.
    """
    import tensorflow as tf

    installed = importlib.util.find_spec("openvino") is not None
    if name == "openvino" and not installed:
        raise InputError("engine=openvino: the package is not installed: pip install openvino, or use engine=keras")
    if name == "openvino" or (name == "auto" and installed and not tf.config.list_physical_devices("GPU")):
        return "openvino"
    return "keras"


def build_engine(name: EngineName, network: keras.Model, threads: int) -> Engine:
    """The engine of that name, as `choose` reads it, for a network."""
    return openvino_engine(network, threads) if choose_engine(name) == "openvino" else keras_engine(network)


def describe_engine(name: EngineName, threads: int) -> dict[str, Any]:
    """What may change the last bits of what an engine gives: its name and versions, the batch shape, the processor; for
    TensorFlow also threads and kernels. OpenVINO gives the same bits for all thread counts."""
    chosen = choose_engine(name)
    packages = ("openvino", "tensorflow", "keras") if chosen == "openvino" else ("tensorflow", "keras")
    facts: dict[str, Any] = {"engine": chosen, "code": ENGINES_VERSION, "batch": BATCH}
    facts |= {package: _version(package) for package in packages}
    facts["processor"] = processor()
    if chosen == "keras":
        import tensorflow as tf
        from tensorflow.python.framework.config import is_op_determinism_enabled  # there is no public way to ask

        facts |= {"threads": threads, "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS")}
        facts["deterministic"] = is_op_determinism_enabled()
        gpus = tf.config.list_physical_devices("GPU")
        facts["gpus"] = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # of another name: tensorflow-cpu
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def keras_engine(network: keras.Model) -> Engine:
    """The network as TensorFlow runs it, in inference mode, traced once."""
    forward = _traced(network)
    return lambda pixels: np.asarray(forward(pixels))


def openvino_engine(network: keras.Model, threads: int) -> Engine:
    """The network as OpenVINO runs it on a CPU, in float32, one stream a thread, so that what a batch gives depends
    neither on their number nor on what runs beside it."""
    import openvino as ov

    core = ov.Core()
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # on a CPU with bfloat16 the hint alone would give up half the digits
    }
    try:
        compiled = core.compile_model(_read(core, network), "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"engine=openvino: it cannot run this network ({reason}); use engine=keras") from error
    requests = threading.local()

    def run(pixels: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return np.array(requests.own.infer({0: pixels})[0])

    # The first call sets up OpenVINO's Python side. Two threads that do so at once wait for each other for ever.
    run(np.zeros((BATCH, *network.input_shape[1:]), np.uint8))
    return run


def _traced(network: keras.Model) -> Any:
    import tensorflow as tf

    signature = [tf.TensorSpec((BATCH, *network.input_shape[1:]), tf.uint8)]
    return tf.function(
        lambda pixels: network(tf.cast(pixels, tf.float32), training=False),
        input_signature=signature,
        autograph=False,
        jit_compile=False,
    )


def _read(core: Any, network: keras.Model) -> Any:
    """The network's graph, read by OpenVINO's own TensorFlow reader, with its weights as constants.

    The graph is traced with the weights as inputs, and constants are put in their place afterwards: TensorFlow's own
    way to make constants of them copies and optimizes the whole graph, which takes ResNet50 four seconds more and gives
    the same bits. OpenVINO's Python converter brings a telemetry package along.
    """
    import openvino.opset13 as operations
    import tensorflow as tf

    variables = [*network.trainable_variables, *network.non_trainable_variables]
    split = len(network.trainable_variables)

    def forward(pixels: Any, *weights: Any) -> Any:
        pixels = tf.cast(pixels, tf.float32)
        return network.stateless_call(weights[:split], weights[split:], pixels, training=False)[0]

    specs = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
    pixels = tf.TensorSpec((BATCH, *network.input_shape[1:]), tf.uint8)
    traced = tf.function(forward, input_signature=[pixels, *specs], autograph=False, jit_compile=False)
    concrete = traced.get_concrete_function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pb"
        path.write_bytes(concrete.graph.as_graph_def().SerializeToString())
        model = core.read_model(path)
    parameters = {name: parameter for parameter in model.get_parameters() for name in parameter.output(0).get_names()}
    given = concrete.inputs[1 : 1 + len(variables)]  # behind them, the states of dropout, which does nothing here
    for tensor, variable in zip(given, variables, strict=True):
        parameter = parameters[tensor.name]
        parameter.output(0).replace(operations.constant(variable.numpy()).output(0))
        model.remove_parameter(parameter)
    return model
