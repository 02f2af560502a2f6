"""Pillow's resampling as a matrix."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tl_research.models.resampling import resize_matrix


@pytest.mark.parametrize("new_size", [9, 16, 23])
def test_the_matrix_resizes_both_sides_as_pillow_does(new_size: int) -> None:
    image = np.random.default_rng(0).random((16, 16), np.float32)
    weights = resize_matrix(16, new_size)
    expected = Image.fromarray(image).resize((new_size, new_size), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(weights @ image @ weights.T, np.asarray(expected), atol=1e-6)
