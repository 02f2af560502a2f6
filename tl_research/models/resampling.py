"""Give Pillow's resampling as a matrix."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_matrix(size: int, new_size: int) -> np.ndarray:
    """Return the weights, float32 `(new_size, size)`, by which Pillow's bicubic resize makes the new pixels of a side
    of the old ones: what it makes of the unit vectors."""
    units = Image.fromarray(np.eye(size, dtype=np.float32))
    return np.asarray(units.resize((size, new_size), Image.Resampling.BICUBIC))
