"""What engines answer today: whoever changes it changes the version that stored features are found by."""

from __future__ import annotations

import numpy as np
import pytest

from tl_research import compose
from tl_research.features.engines import BATCH, EngineName, build_engine

CHANGED = "other features than before: change ENGINES_VERSION in engines.py (and CODE_VERSION), then these numbers"
ROWS = [
    [0.00056, 0.04786, 0.04705, 0.00334, 0.00426, 0.10925],
    [0.00484, 0.04419, 0.06094, 0.00037, 0.01351, 0.11699],
]


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_whoever_changes_the_features_changes_the_version(name: EngineName) -> None:
    """Processors differ in the last bits, so the rows of two images are compared but for those."""
    network = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    pixels = (np.arange(BATCH * 32 * 32 * 3) * 37 % 251).astype(np.uint8).reshape(BATCH, 32, 32, 3)
    rows = build_engine(name, network, 1)(pixels)
    assert rows.shape == (BATCH, 32)
    np.testing.assert_allclose(rows[[0, -1], :6], ROWS, rtol=0, atol=2e-5, err_msg=CHANGED)
