"""The accelerators of this process, and the switches that decide the last bits of its kernels."""

from __future__ import annotations

import os
from typing import Any


def gpu_details() -> list[dict[str, Any]]:
    """Describe each GPU: its `device_name` and its `compute_capability`, where the driver knows them."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu) for gpu in gpus]


def has_gpu() -> bool:
    """Return whether this process can use a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def kernel_facts() -> dict[str, Any]:
    """Return the settings and devices that TensorFlow chooses its kernels by."""
    from tensorflow.python.framework.config import is_op_determinism_enabled  # TensorFlow has no public function for it

    return {
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "deterministic": is_op_determinism_enabled(),
        "gpus": [details.get("device_name") for details in gpu_details()],
    }
