"""Test which images a fingerprint nominates as equal, and how small, turned and deep ones are told apart."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tl_research.data.decode import decode_stored
from tl_research.data.fingerprint import (
    average_candidates,
    fingerprint_of,
    pixel_candidates,
    with_averages,
    with_pixels,
)


def encoded(pixels: np.ndarray | Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format_, **options)
    return file.getvalue()


def noise(seed: int, *shape: int, peak: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, peak, shape).astype(dtype)


def sets(*contents: bytes) -> list[list[int]]:
    """Find equal pixels as a run does; return the numbers of each two or more equal ones."""
    prints = [fingerprint_of(decode_stored(each)) for each in contents]
    for n in average_candidates(prints):
        prints[n] = with_averages(prints[n], decode_stored(contents[n], in_full=True))
    for n in pixel_candidates([bytes([n]) for n in range(len(contents))], prints):
        prints[n] = with_pixels(prints[n], decode_stored(contents[n], in_full=True))
    pixels = [found.pixels for found in prints]
    return [[n for n, other in enumerate(pixels) if other == each] for each in dict.fromkeys(pixels) if each]


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (9, 13), (28, 28), (65, 79), (200, 150)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("lines", [False, True], ids=["noise", "lines"])
def test_a_jpeg_equals_its_lossless_copy(size: tuple[int, int], mode: str, lines: bool) -> None:
    pixels = noise(1, *size, 3)
    if lines:  # a JPEG oversteps white
        pixels[:] = 255
        pixels[::3] = (0, 20, 90)
    jpeg = encoded(Image.fromarray(pixels).convert(mode), "JPEG", quality=60)
    copy = np.array(Image.open(io.BytesIO(jpeg)))
    other = copy.copy()
    other.flat[0] ^= 1
    assert sets(jpeg, encoded(copy, "PNG"), encoded(other, "PNG"), encoded(copy, "TIFF"))[0] == [0, 1, 3]


def test_depth_and_palette_count_as_they_are_seen() -> None:
    grey, deep = noise(1, 40, 50), noise(1, 40, 50, peak=65536, dtype="uint16")
    same = [encoded(grey, "PNG"), encoded(np.dstack([grey] * 3), "BMP"), encoded(Image.fromarray(grey), "GIF")]
    assert sets(*same, *(encoded(deep, each) for each in ("PNG", "TIFF")), encoded(deep // 2, "PNG")) == [
        *([0, 1, 2], [3, 4])
    ]


def test_equal_averages_of_other_pixels_are_told_apart() -> None:
    fine = np.tile(np.array([[0, 200], [200, 0]], np.uint8), (32, 32))
    assert sets(encoded(fine, "PNG"), encoded(fine[::-1].copy(), "PNG")) == [[0], [1]]


def test_a_jpeg_and_its_copy_lying_on_its_side_are_equal() -> None:
    jpeg = encoded(noise(1, 80, 112, 3), "JPEG", subsampling=0)
    turned = Image.open(io.BytesIO(jpeg)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert sets(jpeg, encoded(turned, "PNG", exif=exif), encoded(turned, "PNG")) == [[0, 1]]
