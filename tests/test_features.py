"""Features come in the images' order, each image is decoded once, and a batch's neighbours do not matter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tl_research import compose
from tl_research.data.datamodule import DataModule
from tl_research.engines import BATCH
from tl_research.features import extract


@pytest.fixture(scope="module")
def data(colours: Path) -> DataModule:
    return compose(["data=folder", f"data.root={colours}"]).data.load()


def test_rows_follow_the_indices_whatever_the_batch(data: DataModule) -> None:
    network = compose(["backbone=tiny"]).backbone.build()
    everything = extract(network, data, np.arange(len(data)), threads=2)
    assert len(data) % BATCH  # so that the last batch is padded
    some = np.array([30, 2, 17])
    np.testing.assert_array_equal(extract(network, data, some, threads=1), everything[some])
    pixels = np.stack([data.pixels(i, 64) for i in range(len(data))]).astype(np.float32)
    np.testing.assert_allclose(everything, network(pixels, training=False), atol=1e-5)


def test_an_image_passes_once(data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    pixels = DataModule.pixels
    monkeypatch.setattr(DataModule, "pixels", lambda self, i, size: (seen.update([i]), pixels(self, i, size))[1])
    extract(compose(["backbone=tiny"]).backbone.build(), data, np.arange(len(data)), threads=2)
    assert seen == Counter(range(len(data)))
