"""A network that scales nothing: a warning, and what pixels of 0 to 1 would give."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tl_research import compose


@pytest.mark.parametrize("given", [None, "none"])
def test_a_network_that_scales_nothing_is_warned_of(
    given: str | None, tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was made for pixels of 0 to 1: of 0 to 255, its activation gives one answer for all."""
    import keras

    layers = keras.layers
    kernel = keras.initializers.RandomUniform(0, 0.05, seed=0)
    conv = layers.Conv2D(8, 3, activation="tanh", kernel_initializer=kernel)
    path = tmp_path / "mine.h5"
    keras.Sequential([keras.Input((32, 32, 3)), conv, layers.Flatten(), layers.Dense(2)]).save(path)
    options = ["backbone=saved", f"backbone.weights={path}", "data=folder", f"data.root={colours}"]
    with caplog.at_level(logging.WARNING):
        compose([*options, *([f"backbone.preprocessing={given}"] if given else [])]).run(tmp_path / "run")
    losses = re.findall(r"training images: (\S+) with backbone.preprocessing=none, (\S+) with unit", caplog.text)
    assert ("does not scale its images" in caplog.text) == (given is None) == bool(losses)
    assert all(float(unit) < float(none) for none, unit in losses)
