"""Test which images a fingerprint nominates as equal, and how small, turned and deep ones are told apart."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_research.data.decode import decode_stored
from tl_research.data.fingerprint import fingerprint_of, pixel_candidates, pixel_digest


def encoded(pixels: np.ndarray | Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format_, **options)
    return file.getvalue()


def noise(seed: int, *shape: int, peak: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, peak, shape).astype(dtype)


def nominated(*contents: bytes) -> list[int]:
    prints = [fingerprint_of(decode_stored(content)) for content in contents]
    return pixel_candidates([bytes([number]) for number in range(len(contents))], prints)


def digest(content: bytes) -> str:
    return pixel_digest(decode_stored(content, in_full=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (9, 13), (28, 28), (65, 79), (200, 150)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_and_its_lossless_copy_are_nominated(size: tuple[int, int], mode: str) -> None:
    jpeg = encoded(Image.fromarray(noise(1, *size, 3)).convert(mode), "JPEG", quality=60)
    copy, other = encoded(Image.open(io.BytesIO(jpeg)), "PNG"), encoded(noise(2, *size, 3)[::-1, :, :] // 2, "PNG")
    assert {0, 1} <= set(nominated(jpeg, copy, other))
    assert digest(jpeg) == digest(copy) != digest(other)


def test_depth_palette_and_transparency_count_as_they_are_seen() -> None:
    grey = noise(1, 40, 50)
    same = [encoded(grey, "PNG"), encoded(np.dstack([grey] * 3), "BMP"), encoded(Image.fromarray(grey), "GIF")]
    deep = [encoded(noise(1, 40, 50, peak=65536, dtype="uint16"), format_) for format_ in ("PNG", "TIFF")]
    other = encoded(noise(1, 40, 50, peak=65536, dtype="uint16") // 2, "PNG")
    assert nominated(*same, *deep, other) == [0, 1, 2, 3, 4]
    assert [len({digest(content) for content in each}) for each in (same, deep)] == [1, 1]


def test_equal_averages_of_other_pixels_are_nominated_and_told_apart() -> None:
    fine = np.tile(np.array([[0, 200], [200, 0]], np.uint8), (32, 32))
    one, other = encoded(fine, "PNG"), encoded(fine[::-1].copy(), "PNG")
    assert nominated(one, other) == [0, 1]
    assert digest(one) != digest(other)
