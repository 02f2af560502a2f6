"""Ensembles as one model: the mean of the members' probabilities, whatever their input size."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tl_research.metrics.probabilities import softmax
from tl_research.models.ensemble import build_ensemble, ensemble_members
from tl_research.models.weights import load_model


def classifier(size: int, kernel: np.ndarray, factor: float = 1.0) -> keras.Model:
    """Logits from the mean colour."""
    pixels = keras.Input((size, size, 3))
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(3, name="logits")(mean), name="classifier")
    model.get_layer("logits").set_weights([factor * kernel, np.zeros(3)])
    return model


def test_an_ensemble_answers_with_the_mean_probability(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 20, 20, 3), np.uint8)
    smaller = [np.asarray(Image.fromarray(image).resize((13, 13), Image.Resampling.BICUBIC)) for image in pixels]
    members = [classifier(size, rng.normal(size=(3, 3)), 9) for size in (20, 13)]
    build_ensemble(members).save(tmp_path / "model.keras")
    ensemble = load_model(tmp_path / "model.keras")
    each = [
        softmax(np.asarray(member(np.asarray(images))))
        for member, images in zip(members, (pixels, smaller), strict=True)
    ]
    assert softmax(np.asarray(ensemble(pixels))) == pytest.approx(np.mean(each, axis=0), abs=2e-3)
    assert ensemble.input_shape == (None, 20, 20, 3)
    (no_resize, _), (resize, member) = ensemble_members(ensemble)
    assert no_resize is None
    assert np.abs(np.asarray(resize(pixels)) - smaller).max() <= 1.5  # Pillow rounds twice
    assert np.asarray(member(np.asarray(smaller))) == pytest.approx(np.asarray(members[1](np.asarray(smaller))))
    assert not ensemble_members(members[0])


def test_members_that_are_certain_do_not_overflow() -> None:
    pixels = np.full((1, 8, 8, 3), 255, np.uint8)
    ensemble = build_ensemble([classifier(8, np.eye(3) * [1, 0, -1], factor) for factor in (1000, 500)])
    logits = np.asarray(ensemble(pixels))
    assert logits[0] == pytest.approx([0, -500 - np.log(2), -1000 - np.log(2)], rel=1e-4)
