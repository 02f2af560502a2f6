"""Write `.safetensors` files without the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

NAMES = {"<f4": "F32", "<f2": "F16", "<u2": "U16"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], types: Mapping[str, str] | None = None) -> Path:
    """Write tensors, in this order; `types` names those whose type NumPy does not have."""
    header, offset = {}, 0
    for name, array in tensors.items():
        dtype = (types or {}).get(name) or NAMES[array.dtype.str]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values()))
    return path
