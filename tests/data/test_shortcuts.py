"""Test that facts beside the subject are measured, and named where they predict the class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_research.data.image_facts import ImageFacts, jpeg_quality, measure_images
from tl_research.data.near_duplicates import SIDE
from tl_research.data.shortcuts import bins_of, codes_of, describe_facts, find_shortcuts


def facts(count: int, rng: np.random.Generator) -> ImageFacts:
    greys = rng.integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)
    sides = rng.integers(200, 400, (2, count))
    return ImageFacts(*sides, np.array(["JPEG"] * count), rng.integers(60, 96, count).astype(float), greys)


PLANTS = ["size", "format", "border"]


@pytest.mark.parametrize("fact", [None, *PLANTS])
def test_a_planted_shortcut_is_named_and_no_other(fact: str | None) -> None:
    rng = np.random.default_rng(0)
    labels, found = np.arange(160) % 2, facts(160, rng)
    names = [f"photo{number}" for number in rng.permutation(160)]
    own = labels == 1
    if fact == "size":
        found.widths[own] += 150
    elif fact == "format":
        found.formats[own], found.qualities[own] = "PNG", np.nan
    elif fact == "border":
        found.greys[np.ix_(own, [0], np.arange(SIDE))] = 255
    paths = [Path(f"{name}.jpg") for name in names]
    tested = find_shortcuts(describe_facts(found, paths), labels)
    assert [each.fact for each in tested if each.is_found] == ([fact] if fact else [])


def test_bins_are_even_and_rare_texts_say_nothing() -> None:
    assert np.bincount(bins_of(np.arange(80.0)))[1:].tolist() == [10] * 8
    assert bins_of(np.array([np.nan, 1.0, 1.0])).tolist()[0] == 0
    assert codes_of(["a", "a", "b"]).tolist() == [1, 1, 0]


def test_quality_and_oddities_are_measured(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8))
    for quality in (30, 75, 95):
        file = io.BytesIO()
        noise.save(file, "jpeg", quality=quality)
        assert jpeg_quality([*Image.open(file).quantization.values()]) == quality  # type: ignore[attr-defined]
    made = {"plain": noise, "blank": Image.new("RGB", (64, 64), "red"), "tiny": noise.resize((20, 24))}
    made["extreme"] = noise.resize((400, 64))
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
    measured = measure_images([tmp_path / f"{name}.png" for name in made])
    assert measured.oddities() == ["", "blank", "tiny", "extreme"]
    assert measured.formats.tolist() == ["PNG"] * 4
    assert (measured.widths[0], measured.heights[0]) == (80, 64)
