"""Quantize an OpenVINO model to 8 bits, its accuracy controlled."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tl_research.errors import InputError


def quantize(model: Any, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray, max_drop: float) -> Any:
    """Quantize weights and activations, their ranges from `calibration` images; operations go back to float32 until the
    accuracy on `images` `(n, s, s, 3)` with `labels` `(n,)` is at most `max_drop` lower. Raises `InputError` if all of
    them would."""
    import nncf
    from openvino.passes import ConstantFolding, Manager

    nncf.set_log_level(logging.ERROR)
    # In the graph as TensorFlow gives it, kernels come from Transpose and Unsqueeze: NNCF would leave them float32.
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)

    def accuracy(compiled: Any, batches: Any) -> tuple[float, list[float]]:
        right = [float(compiled(pixels)[0].argmax() == label) for pixels, label in batches]
        return float(np.mean(right)), right

    def pixels_of(item: tuple[np.ndarray, int]) -> np.ndarray:
        return item[0]

    # The head tells classes apart by small differences of averaged features, and costs next to nothing.
    head = nncf.IgnoredScope(patterns=[r".*/head(_\d+)?/.*"], types=["ReduceMean"], validate=False)
    control = [(image[None], int(label)) for image, label in zip(images, labels, strict=True)]
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset([(image[None], 0) for image in calibration], pixels_of),
        nncf.Dataset(control, pixels_of),
        validation_fn=accuracy,
        max_drop=max_drop,
        subset_size=len(calibration),
        ignored_scope=head,
    )
    if not any(operation.get_type_name() == "FakeQuantize" for operation in quantized.get_ops()):
        raise InputError(f"no part of the network stays within --max-drop {max_drop:g} in 8 bits")
    return quantized
