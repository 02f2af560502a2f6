"""Inference engines for the frozen part of a network: batches of pixels in, features out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tl_research.backend.devices import has_gpu, kernel_facts
from tl_research.backend.inference import compile_network, export_graph
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
    """Return the engine that a name stands for: `auto` is TensorFlow if there is a GPU, else OpenVINO.

    Raises:
        InputError: `openvino`, and the package is not installed.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if name == "openvino" and not installed:
        raise InputError("engine=openvino: the package is not installed: pip install openvino, or use engine=keras")
    if name == "openvino" or (name == "auto" and installed and not has_gpu()):
        return "openvino"
    return "keras"


def build_engine(name: EngineName, network: keras.Model, threads: int) -> Engine:
    """Build the engine of that name for a network."""
    return openvino_engine(network, threads) if choose_engine(name) == "openvino" else keras_engine(network)


def lazy_engine(name: EngineName, network: keras.Model, threads: int) -> Engine:
    """Build the engine when it gets its first batch: other processes may have filled the store meanwhile."""
    lock = threading.Lock()
    built: list[Engine] = []

    def run(pixels: np.ndarray) -> np.ndarray:
        with lock:
            if not built:
                built.append(build_engine(name, network, threads))
        return built[0](pixels)

    return run


def describe_engine(name: EngineName, threads: int) -> dict[str, Any]:
    """Return all facts that may change the last bits of features: the engine's name and versions, the batch shape, the
    processor; for TensorFlow also threads and kernels. OpenVINO gives the same bits for all thread counts."""
    chosen = choose_engine(name)
    packages = ("openvino", "tensorflow", "keras") if chosen == "openvino" else ("tensorflow", "keras")
    facts: dict[str, Any] = {"engine": chosen, "code": ENGINES_VERSION, "batch": BATCH}
    facts |= {package: _version(package) for package in packages}
    facts["processor"] = processor()
    if chosen == "keras":
        facts |= {"threads": threads, **kernel_facts()}
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed under another name: tensorflow-cpu
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def keras_engine(network: keras.Model, batch_size: int | None = None) -> Engine:
    """Run a network by TensorFlow, in inference mode, on batches of one size, by default `BATCH`."""
    return compile_network(network, batch_size or BATCH)


def openvino_engine(network: keras.Model, threads: int, batch_size: int | None = None) -> Engine:
    """Run a network by OpenVINO on a CPU, in float32, one stream a thread, so that the features of a batch depend
    neither on the number of threads nor on other batches. One image at a time is run by all threads."""
    import openvino as ov

    batch_size = batch_size or BATCH
    core = ov.Core()
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads if batch_size > 1 else 1,
        "INFERENCE_PRECISION_HINT": "f32",  # a CPU with bfloat16 would lose half of the digits
    }
    try:
        compiled = core.compile_model(read_network(core, network, batch_size), "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"engine=openvino: it cannot run this network ({reason}); use engine=keras") from error
    requests = threading.local()

    def run(pixels: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return np.array(requests.own.infer({0: pixels})[0])

    # The first call sets up OpenVINO's Python side; two threads that do so at once deadlock.
    run(np.zeros((batch_size, *network.input_shape[1:]), np.uint8))
    return run


def read_network(core: Any, network: keras.Model, batch_size: int | None) -> Any:
    """Read a network's graph, for one batch size or any (None), by OpenVINO's own TensorFlow reader, and put constants
    in the place of the weights. OpenVINO's Python converter would bring a telemetry package along."""
    import openvino.opset13 as operations

    graph = export_graph(network, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pb"
        path.write_bytes(graph.definition)
        model = core.read_model(path)
    parameters = {name: parameter for parameter in model.get_parameters() for name in parameter.output(0).get_names()}
    for name, variable in graph.variables.items():
        parameter = parameters[name]
        parameter.output(0).replace(operations.constant(variable.numpy()).output(0))
        model.remove_parameter(parameter)
    return model
