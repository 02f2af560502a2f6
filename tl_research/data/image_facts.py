"""Measure what a photograph shows beside its subject: size, format, compression, brightness, border, and a small grey
copy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl_research.data.decode import UndecodableError, decode_image, read_bytes
from tl_research.data.near_duplicates import SIDE
from tl_research.data.pixel_range import AS_STORED, PixelRange
from tl_research.system.hardware import cores
from tl_research.system.progress import track

BLANK = 2.0
"""An image whose grey values have a smaller standard deviation, of 0 to 255, shows nothing."""

TINY_SIDE = 32
"""An image with a shorter side, in pixels, is tiny."""

EXTREME = 4.0
"""An image that is so many times as long as wide, or more, is extreme."""

# The luminance table of the JPEG standard (annex K), summed over its 64 entries for each quality, as libjpeg scales it.
_LUMINANCE = np.array(
    (
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    )
)
_QUALITIES = np.arange(1, 101)
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)
_SUMS = np.clip((_LUMINANCE * _SCALES[:, None] + 50) // 100, 1, 255).sum(axis=1)


@dataclass(frozen=True)
class ImageFacts:
    """Facts of n images, in order. Upright `widths` and `heights` in pixels; `formats` by Pillow's names;
    `qualities` of JPEGs from 1 to 100, else NaN; small `greys` uint8 `(n, SIDE, SIDE)`."""

    widths: np.ndarray
    heights: np.ndarray
    formats: np.ndarray
    qualities: np.ndarray
    greys: np.ndarray

    @property
    def spreads(self) -> np.ndarray:
        """The standard deviation of each image's grey values, 0 to 128."""
        return self.greys.std(axis=(1, 2))

    @property
    def border_steps(self) -> np.ndarray:
        """How much brighter, in grey values, each image's border is than what lies just within it."""
        return _ring(self.greys, 0) - _ring(self.greys, 2)

    def oddities(self) -> list[str]:
        """Say of each image whether it is blank, tiny or extreme; empty for others."""
        long, short = np.maximum(self.widths, self.heights), np.minimum(self.widths, self.heights)
        return [
            ", ".join(word for word, holds in zip(("blank", "tiny", "extreme"), flags, strict=True) if holds)
            for flags in zip(self.spreads < BLANK, short < TINY_SIDE, long >= EXTREME * short, strict=True)
        ]


def _ring(greys: np.ndarray, depth: int) -> np.ndarray:
    within = greys[:, depth : SIDE - depth, depth : SIDE - depth].astype(float)
    edge = np.ones(within.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    return within[:, edge].mean(axis=1)


def jpeg_quality(tables: Sequence[Sequence[int]]) -> float:
    """Estimate the quality, 1 to 100, that a JPEG was saved with, from its first quantisation table: that whose
    standard table has the closest sum."""
    return float(_QUALITIES[np.abs(_SUMS - sum(tables[0])).argmin()])


def measure_images(paths: Sequence[Path], pixel_range: PixelRange = AS_STORED) -> ImageFacts:
    """Read images and measure them, with a progress bar. One that has become unreadable counts as blank."""
    greys = np.zeros((len(paths), SIDE, SIDE), np.uint8)

    def read(number: int) -> tuple[int, int, str, float]:
        try:
            content = read_bytes(paths[number])
            image = decode_image(content, 2 * SIDE, pixel_range)
        except UndecodableError:
            return 0, 0, "", float("nan")
        greys[number] = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return _header(content, image.size)

    with ThreadPoolExecutor(cores()) as pool:
        rows = list(track(pool.map(read, range(len(paths))), "measuring images", total=len(paths)))
    widths, heights, formats, qualities = zip(*rows, strict=True) if rows else ((), (), (), ())
    return ImageFacts(np.array(widths), np.array(heights), np.array(formats), np.array(qualities, float), greys)


def _header(content: bytes, shown: tuple[int, int]) -> tuple[int, int, str, float]:
    """Return the upright width and height, the format and the JPEG quality; `shown` is the size of the decoded image,
    upright, maybe reduced."""
    size, form, quality = shown, "", float("nan")
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content)) as image:
        size, form = image.size, image.format or ""
        if tables := getattr(image, "quantization", None):
            quality = jpeg_quality([*tables.values()])
    is_turned = (size[0] > size[1]) != (shown[0] > shown[1]) and shown[0] != shown[1]
    return (size[1], size[0], form, quality) if is_turned else (*size, form, quality)
