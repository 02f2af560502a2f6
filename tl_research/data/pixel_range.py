"""Scale images with more than 8 bits a channel (X-rays, microscopes, depth maps, floats) to 8 bits."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

log = logging.getLogger(__name__)

Bits = Literal["auto", 8, 10, 12, 14, 16]
BITS = (8, 10, 12, 14, 16)

Window = tuple[float, float]

# Pillow reads 16-bit colour as the high byte of each value; read in the other byte order, the file yields the low one.
_NATIVE, _SWAPPED = (";16L", ";16B") if sys.byteorder == "little" else (";16B", ";16L")
_LOW_BYTES = {
    "LA;16B": "RGBA",  # high and low byte of grey and of alpha
    **{f"{mode};16B": f"{mode};16L" for mode in ("RGB", "RGBA")},
    **{f"{mode};16L": f"{mode};16B" for mode in ("RGB", "RGBA")},
    **{f"{mode};16N": f"{mode}{_SWAPPED}" for mode in ("RGB", "RGBA")},
}


@dataclass(frozen=True, slots=True)
class DeepValues:
    """Smallest and largest value of an image with more than 8 bits a channel."""

    is_float: bool
    low: float
    high: float

    @classmethod
    def of(cls, deep: np.ndarray) -> Self:
        """Measure an image; infinite values and NaN count as 0."""
        finite = np.where(np.isfinite(deep), deep, 0)
        return cls(deep.dtype.kind == "f", float(finite.min(initial=0)), float(finite.max(initial=0)))

    @property
    def fault(self) -> str | None:
        """Say why the image cannot be scaled without a window; None if it can. Floats may lie in 0 to 1 or 0 to 255, a
        rounding error below 0 counts as 0; integers may not be negative, as those of a CT scan are."""
        if self.high <= 255 and self.low >= -max(self.high, 1) / 510 if self.is_float else self.low >= 0:
            return None
        kind = "float" if self.is_float else "integer"
        return f"{kind} values from {self.low:g} to {self.high:g}; data.window=[LOW,HIGH] says what is black and white"


@dataclass(frozen=True, slots=True)
class PixelRange:
    """Range of values that becomes 0 to 255, for images with more than 8 bits a channel only.

    `bits` is the number of bits that integers use: 12 makes 4095 white. `window` holds the values that become black and
    white, of integers and floats alike, instead.
    """

    bits: int = 16
    window: Window | None = None

    def keeps(self, is_float: bool) -> bool:
        """Return whether such images are scaled as they always were."""
        return self.window is None and (is_float or self.bits == 16)

    def digest(self, content: bytes, values: DeepValues | None) -> bytes:
        """Return a digest of an image's pixels from that of its file: the same where the range changes nothing, so that
        features stored for it remain valid."""
        if values is None or self.keeps(values.is_float):
            return content
        return hashlib.sha256(content + repr(self.window or self.bits).encode()).digest()

    def eight_bits(self, deep: np.ndarray) -> np.ndarray:
        """Scale integers or floats `(h, w, ...)` to uint8. Raises `ValueError` for floats that need a window."""
        values = DeepValues.of(deep)
        if self.window is None and values.fault:
            raise ValueError(values.fault)
        low, high = self.window or (0, self._top(values))
        scaled = np.where(np.isfinite(deep), deep, 0).astype(np.float32)
        scaled -= low  # in place, for the image may be large
        scaled /= high - low
        np.clip(scaled, 0, 1, out=scaled)
        scaled *= 255
        scaled += 0.5
        return scaled.astype(np.uint8)

    def _top(self, values: DeepValues) -> float:
        if values.is_float:
            return 1.0 if values.high <= 1 else max(values.high, 255)
        return max(values.high, 65535) if self.bits == 16 else 2**self.bits - 1


AS_STORED = PixelRange()
"""Integers fill 16 bits."""


def choose_range(
    bits: Bits, window: Window | None, values: Iterable[DeepValues | None], everything: Iterable[DeepValues | None] = ()
) -> PixelRange:
    """Resolve `bits=auto` to the smallest number of bits that holds the values of these images; warn if none of them
    tells it, and some of `everything` need it."""
    if bits != "auto":
        return PixelRange(bits, window)
    peaks = [found.high for found in values if found and not found.is_float]
    if not (peaks or window) and any(found and not found.is_float for found in everything):
        log.warning(
            "data.bits=auto: no training image has more than 8 bits, and some others have; these are taken to use all "
            "16, give data.bits if they use fewer"
        )
    peak = max(peaks, default=65535)
    return PixelRange(next((number for number in BITS if peak < 2**number), 16), window)


def low_byte_mode(image: Any) -> str | None:
    """Return the raw mode in which an opened, unread 16-bit colour image yields the low byte of each value; None for
    other images."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return _LOW_BYTES.get(mode) if isinstance(mode, str) else None


def read_in_mode(image: Any, mode: str) -> np.ndarray:
    """Read the pixels of an opened, unread image in another raw mode: uint8 `(h, w, bands)`."""
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
    return np.asarray(image)


def join_bytes(high: np.ndarray, low: np.ndarray, mode: str) -> np.ndarray:
    """Join the colour channels of the two readings of a 16-bit image to uint16 `(h, w, 3)`."""
    colour = np.repeat(low[..., 1:2], 3, axis=2) if mode == "RGBA" else low[..., :3]
    return high[..., :3].astype(np.uint16) << 8 | colour
