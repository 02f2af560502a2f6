"""Run an exported model in its own runtime and time it: `python -m tl_research.serving.runtimes FORMAT FOLDER IMAGES
ANSWERS`, a process that has imported nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 16
SECONDS = 0.5

Predict = Callable[[np.ndarray], np.ndarray]
"""Pixels uint8 `(n, s, s, 3)` -> probabilities float32 `(n, k)`."""


def _keras(folder: Path) -> Predict:
    from tl_research.backend.start import start_backend

    start_backend()
    import keras

    model = keras.models.load_model(folder / "model.keras")
    return lambda pixels: np.asarray(model(pixels))


def _savedmodel(folder: Path) -> Predict:
    from tl_research.backend.exported import load_saved_model

    return load_saved_model(folder)


def _onnx(folder: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0]


def _openvino(folder: Path) -> Predict:
    import openvino

    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: np.array(compiled(pixels)["probabilities"])


def _litert(folder: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    from tl_research.system.hardware import cores

    runner = Interpreter(str(folder / "model.tflite"), num_threads=cores()).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["probabilities"]


RUNTIMES: dict[str, Callable[[Path], Predict]] = {
    "keras": _keras,
    "savedmodel": _savedmodel,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
}


def milliseconds(predict: Predict, pixels: np.ndarray) -> float:
    """Measure the median time of a call, in milliseconds an image."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        began = time.perf_counter()
        predict(pixels)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times)) / len(pixels)


def main() -> None:
    """Answer images in batches of 16, the last one smaller, and measure the latency of 1 and 16 images at once."""
    format_, folder, images, answers = sys.argv[1:]
    pixels = np.load(images)
    predict = RUNTIMES[format_](Path(folder))
    parts = [np.array(predict(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
    batch = np.resize(pixels, (BATCH, *pixels.shape[1:]))
    latency = [milliseconds(predict, batch[:1]), milliseconds(predict, batch)]
    np.savez(answers, probabilities=np.concatenate(parts), milliseconds=latency)


if __name__ == "__main__":
    main()
