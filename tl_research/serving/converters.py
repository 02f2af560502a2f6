"""Convert a run's model to another format: `python -m tl_research.serving.converters RUN JOB`. Converters leak memory
and change settings of their process, so each gets a process of its own."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.serving.runtimes import BATCH

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Job:
    """A model to convert, and what to say about it. With `int8` the job's folder holds `calibration.npy`,
    `control.npy` (images) and `labels.npy`."""

    model: keras.Model
    facts: dict[str, Any]
    folder: Path
    int8: bool
    max_drop: float

    @property
    def target(self) -> Path:
        """Give the folder to write the model to."""
        return self.folder / "artifact"

    def build(self, *, named: bool) -> keras.Model:
        """Build the network to export: pixels uint8 `(n, s, s, 3)` -> calibrated probabilities float32 `(n, k)`, in a
        dictionary if `named`."""
        import keras

        pixels = keras.Input(self.model.input_shape[1:], dtype="uint8", name="pixels")
        logits = self.model(keras.ops.cast(pixels, "float32"))
        cooled = keras.layers.Rescaling(1 / self.facts["temperature"], name="temperature", dtype="float32")(logits)
        answer = keras.layers.Softmax(name="probabilities", dtype="float32")(cooled)
        network = keras.Model(pixels, {"probabilities": answer} if named else answer, name="served")
        network(np.zeros((1, *network.input_shape[1:]), np.uint8))  # Keras exports no model that was never called
        return network

    @cached_property
    def calibration(self) -> np.ndarray:
        """Read training images, uint8 `(n, s, s, 3)`."""
        return np.load(self.folder / "calibration.npy")


def _keras(job: Job) -> None:
    job.build(named=False).save(job.target / "model.keras")


def _savedmodel(job: Job) -> None:
    from tl_research.backend.exported import write_saved_model

    write_saved_model(job.build(named=True), job.target, job.target / "model.json")


def _onnx(job: Job) -> None:
    path = job.target / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tf2onnx, about NumPy's names
        job.build(named=True).export(path, format="onnx", verbose=False)
        import onnx
    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    _replace_erfc(model.graph)
    onnx.helper.set_model_props(model, _texts(job.facts))
    onnx.save(model, path)


def _replace_erfc(graph: Any) -> None:
    """Compute `erfc(x)`, of which TensorFlow makes GELU and ONNX knows nothing, as `1 - erf(x)`."""
    import onnx

    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Erfc":
            result, node.op_type, node.output[0] = node.output[0], "Erf", f"{node.output[0]}_erf"
            nodes.append(onnx.helper.make_node("Sub", ["erfc_one", node.output[0]], [result]))
    if len(nodes) > len(graph.node):
        graph.initializer.append(onnx.helper.make_tensor("erfc_one", onnx.TensorProto.FLOAT, [], [1.0]))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _openvino(job: Job) -> None:
    import openvino

    from tl_research.features.engines import read_network

    model = read_network(openvino.Core(), job.build(named=False), None)
    model.input(0).get_tensor().set_names({"pixels"})
    model.output(0).get_tensor().set_names({"probabilities"})
    if job.int8:
        from tl_research.serving.quantization import quantize

        control = np.load(job.folder / "control.npy"), np.load(job.folder / "labels.npy")
        model = quantize(model, job.calibration, *control, job.max_drop)
    for key, text in _texts(job.facts).items():
        model.set_rt_info(text, ["model_info", key])
    openvino.save_model(model, job.target / "model.xml", compress_to_fp16=False)


def _litert(job: Job) -> None:
    from tl_research.backend.exported import int8_options
    from tl_research.serving.litert_metadata import add_metadata

    path = job.target / "model.tflite"
    options = int8_options(job.calibration) if job.int8 else {}
    job.build(named=True).export(path, format="litert", verbose=False, **options)
    add_metadata(path, job.facts)


CONVERTERS: dict[str, Callable[[Job], None]] = {
    "keras": _keras,
    "savedmodel": _savedmodel,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
}


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    """Make texts of all facts, for metadata that holds nothing else: JSON of what is no text."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }


def main() -> None:
    """Convert as `job.json` in the job's folder says, and write what the run itself answers to `images.npy`."""
    from tl_research.backend.inference import compile_forward
    from tl_research.backend.start import start_backend

    run, folder = Run.open(sys.argv[1]), Path(sys.argv[2])
    order = json.loads((folder / "job.json").read_text())
    start_backend()
    model = run.model()
    answer = compile_forward(lambda pixels: model(pixels, training=False))
    images = np.load(folder / "images.npy")
    logits = [answer(images[start : start + BATCH].astype(np.float32)) for start in range(0, len(images), BATCH)]
    np.save(folder / "expected.npy", softmax(np.concatenate(logits) / order["facts"]["temperature"]))
    CONVERTERS[order["format"]](Job(model, order["facts"], folder, order["int8"], order["max_drop"]))


if __name__ == "__main__":
    main()
