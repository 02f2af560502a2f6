"""Read the tensors of a `.safetensors` file: eight bytes that give the length of a JSON header, the header, numbers.

A reader of our own, for the format is as small as this, NumPy's reader of the `safetensors` package knows no bfloat16,
and an array here is a view into the file: nothing is read before it is used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.errors import InputError

DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "?"},
}
MOST_HEADER = 100_000_000  # bytes, the format's own limit


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors by name; bfloat16 becomes float32. Raises InputError if the file is missing or damaged."""
    path = Path(path).expanduser()
    try:
        content = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(content[:8].tobytes(), "little")
        if len(content) < 8 or not 2 <= size <= min(MOST_HEADER, len(content) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(content[8 + size :], name, entry) for name, entry in header.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # hostile bytes raise anything from UnicodeDecodeError to RecursionError
        reason = str(error)[:200] or type(error).__name__
        raise InputError(f"{path} is not a whole safetensors file ({reason}). Download it again") from None


def _tensor(numbers: np.ndarray, name: str, entry: Any) -> np.ndarray:
    dtype, shape, (start, end) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (start, end, *shape)) or end > len(numbers):
        raise ValueError(f"{name[:60]!r} lies outside of it")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name[:60]!r} has other than its {math.prod(shape)} numbers")
    values = np.frombuffer(numbers[start:end].data, dtype).reshape(shape)
    return (values.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else values
