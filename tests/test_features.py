"""Features come in the images' order, each image is decoded once, and a batch's neighbours do not matter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.test_backbone import NETWORKS
from tl_research import InputError, compose, engines
from tl_research.data.datamodule import DataModule
from tl_research.engines import BATCH, EngineName
from tl_research.features import extract


@pytest.fixture(scope="module")
def data(colours: Path) -> DataModule:
    return compose(["data=folder", f"data.root={colours}"]).data.load()


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return compose(["backbone=tiny"]).backbone.build()


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_rows_follow_the_indices_whatever_the_batch_and_the_threads(
    data: DataModule, network: keras.Model, name: EngineName
) -> None:
    everything = extract(engines.build(name, network, 2), data, np.arange(len(data)), 64, threads=2)
    assert len(data) % BATCH  # so that the last batch is padded
    some = np.array([30, 2, 17])
    again = extract(engines.build(name, network, 1), data, some, 64, threads=1)
    np.testing.assert_array_equal(again, everything[some])
    pixels = np.stack([data.pixels(i, 64) for i in range(len(data))]).astype(np.float32)
    np.testing.assert_allclose(everything, network(pixels, training=False), atol=1e-5)


def test_an_image_passes_once(data: DataModule, network: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    pixels = DataModule.pixels
    monkeypatch.setattr(DataModule, "pixels", lambda self, i, size: (seen.update([i]), pixels(self, i, size))[1])
    extract(engines.keras_engine(network), data, np.arange(len(data)), 64, threads=2)
    assert seen == Counter(range(len(data)))


def test_openvino_is_chosen_on_a_cpu_and_its_absence_is_one_line(
    network: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(engines, "openvino_engine", lambda *_: chosen.append("openvino"))
    monkeypatch.setattr(engines, "keras_engine", lambda *_: chosen.append("keras"))
    engines.build("auto", network, 1)
    engines.build("keras", network, 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    engines.build("auto", network, 1)
    assert chosen == ["openvino", "keras", "keras"]
    with pytest.raises(InputError, match="pip install openvino"):
        engines.build("openvino", network, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_engines_agree(name: str) -> None:
    backbone = compose([f"backbone={name}", "backbone.weights=null"]).backbone.build()
    size = backbone.input_shape[1]
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    expected = engines.keras_engine(backbone)(pixels)
    np.testing.assert_allclose(
        engines.openvino_engine(backbone, 2)(pixels), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
