"""Test images from memory: what is taken, what it becomes, and the digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_research import InputError, compose, from_arrays
from tl_research.data.array_source import Arrays
from tl_research.data.pixel_range import PixelRange

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 9, 7, 3), np.uint8)
LABELS = ["cat", "dog"] * 6


def load(images: object, cache: Path, labels: object = LABELS, **options: object) -> object:
    return compose(from_arrays(images, labels, cache=cache, **options)).data.load()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOUR, COLOUR),
        (list(COLOUR[..., 0]), np.repeat(COLOUR[..., :1], 3, axis=3)),
        (COLOUR[..., :1], np.repeat(COLOUR[..., :1], 3, axis=3)),
        (COLOUR / 255, COLOUR),
        (COLOUR.astype(np.float32), COLOUR),
        (COLOUR.astype(int), COLOUR),
        ([Image.fromarray(image) for image in COLOUR], COLOUR),
        ([Image.fromarray(image).convert("RGBA") for image in COLOUR], COLOUR),
        (COLOUR > 128, np.uint8(255) * (COLOUR > 128)),
    ],
    ids=["uint8", "grey", "one channel", "to 1", "to 255", "int64", "pil", "pil with alpha", "bool"],
)
def test_pixels_are_those_given(tmp_path: Path, images: object, expected: np.ndarray) -> None:
    data = load(images, tmp_path)
    found = {data.paths[i].stem: np.asarray(data.pixels(i, 9)) for i in range(12)}
    assert data.class_names == ["cat", "dog"]
    for number, array in enumerate(expected):
        picture = Image.fromarray(np.ascontiguousarray(array)).resize((9, 9), Image.Resampling.BICUBIC)
        assert np.array_equal(found[f"{number:07d}"], np.asarray(picture))


def test_the_digest_is_of_dtype_shape_and_bytes(tmp_path: Path) -> None:
    data, again = load(COLOUR, tmp_path / "one"), load(COLOUR.copy(), tmp_path / "two")
    assert list(data.digests) == list(again.digests)
    assert data.digests[0] == hashlib.sha256(data.paths[0].read_bytes()).digest()
    other = load(COLOUR.reshape(12, 7, 9, 3), tmp_path / "three")
    assert not set(data.digests) & set(other.digests)
    assert from_arrays(COLOUR, LABELS, cache=tmp_path / "one") != from_arrays(COLOUR, LABELS[::-1], cache=tmp_path)


def test_twelve_bits_groups_and_splits(tmp_path: Path) -> None:
    images = RNG.integers(3000, 4096, (12, 9, 9)).astype(np.uint16)
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    data = load(images, tmp_path, splits=splits, groups=range(12))
    assert data.pixel_range == PixelRange(12)
    assert data.counts()["test"] == {"cat": 2, "dog": 2}
    assert data.groups is not None


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((12, 3, 8, 8), np.uint8), r"images\[0\]: uint8 \(3, 8, 8\).*channels come first"),
        (np.zeros((12, 8), np.uint8), r"images\[0\]"),
        (np.zeros((12, 8, 8), complex), r"images\[0\]: complex128"),
        (np.full((12, 8, 8), -1), r"images\[0\]: int64"),
        (np.full((12, 8, 8), 300.0), "floats from 300 to 300; scale them"),
        (np.full((12, 8, 8), np.nan), "floats"),
        (np.zeros((11, 8, 8), np.uint8), "labels: 12 for 11 images"),
        (["a.jpg"] * 12, r"images\[0\]: <U5"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, images: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_arrays(images, LABELS, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_arrays_that_are_gone_are_named(tmp_path: Path) -> None:
    source = Arrays(digest="0123456789abcdef", cache=str(tmp_path))
    with pytest.raises(InputError, match=r"0123456789abcdef.*from_arrays"):
        source.preflight()
