"""Decode any image file to upright RGB pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

Resize = Literal["squash", "crop", "pad"]

DECODER_VERSION = "7d5b110b7d584438"
"""Change it to any other text whenever a file's pixels change, or which files are unreadable: stored features are then
no longer used, and files are checked again. (The first value is the hash of this file at commit aeace94, so that
features stored then remain valid.)"""

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels, and around an image with `resize=pad`: white, the most common paper."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
"""Formats accepted, whatever the file's name. Pillow knows forty more, some of which (EPS) start other programs."""

# Warnings about damaged EXIF blocks and odd palettes help no user; undecodable files raise an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A file with more pixels (half a gigabyte uncompressed) is an attack or a mistake. Pillow checks on opening.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndecodableError(Exception):
    """A file cannot be decoded; the message is a short reason."""


def version() -> dict[str, str]:
    """Return what pixels depend on besides the file: this module's version, Pillow, and its image libraries."""
    return {
        "code": DECODER_VERSION,
        "pillow": PIL.__version__,
        **{name: str(features.version(name)) for name in ("jpg", "libjpeg_turbo", "webp", "libtiff")},
    }


def read_bytes(path: Path) -> bytes:
    """Read a regular file; raise `UndecodableError` with the reason if that fails."""
    try:
        if not path.is_file():  # reading a pipe would block for ever
            raise UndecodableError(_what_else(path))
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise UndecodableError(_reason(error)) from None


def open_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Open a file and decode it as `decode_image`. Raises `UndecodableError`."""
    return decode_image(read_bytes(path), at_least)


def decode_image(content: bytes, at_least: int | None = None) -> Image.Image:
    """Decode a file's content to upright 8-bit RGB.

    `at_least` allows a JPEG to be decoded at reduced scale, with no side below that many pixels (the format offers 1/2,
    1/4 and 1/8 at a fraction of the cost). Of an animation the first frame is used. Raises `UndecodableError`.
    """
    with _opened(content) as image:
        return _decoded(image, at_least)


def measure(content: bytes) -> tuple[int, int]:
    """Return the stored `(width, height)` after decoding the whole content: a JPEG at 1/8 scale, which detects damaged
    or truncated streams, too. Raises `UndecodableError`."""
    with _opened(content) as image:
        size = image.size
        _decoded(image, at_least=1)
        return size


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            yield image
    except Image.DecompressionBombError:
        raise UndecodableError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsers hit: OSError, SyntaxError, struct.error
        raise UndecodableError(_reason(error, empty=not content)) from None


def _what_else(path: Path) -> str:
    if path.is_dir():
        return "a folder, not an image"
    return "not a regular file" if path.exists() else "no such file"


def _reason(error: Exception, empty: bool = False) -> str:
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "empty file" if empty else "not an image that can be read (JPEG, PNG, GIF, BMP, WebP, TIFF)"
    words = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in words.lower() else words[:120]


def _decoded(image: Image.Image, at_least: int | None) -> Image.Image:
    if at_least:
        image.draft("RGB", (at_least, at_least))
    image.load()
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. `ImageOps.exif_transpose` also rewrites the EXIF block, and fails if damaged."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float images to 8 bits; `convert` would clip values above 255 to white. The range of floats is 0
    to 1 if none is larger, else 0 to 255, else 0 to the maximum."""
    values = np.asarray(image, dtype=np.float32)
    values = np.where(np.isfinite(values), values, 0)
    peak = float(values.max(initial=0))
    top = max(peak, 65535) if image.mode != "F" else 1.0 if peak <= 1 else max(peak, 255)
    return Image.fromarray((np.clip(values / top, 0, 1) * 255 + 0.5).astype(np.uint8))


def fit(image: Image.Image, size: int, resize: Resize = "squash") -> Image.Image:
    """Resize to `size` x `size`: `squash` ignores proportions, `crop` keeps the centre, `pad` adds `BACKGROUND`."""
    filter_ = Image.Resampling.BICUBIC
    if resize == "crop":
        return ImageOps.fit(image, (size, size), filter_)
    if resize == "pad":
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        square = Image.new("RGB", (size, size), BACKGROUND)
        square.paste(image.resize((width, height), filter_), ((size - width) // 2, (size - height) // 2))
        return square
    return image.resize((size, size), filter_)


def read_pixels(path: Path, size: int, resize: Resize = "squash") -> np.ndarray:
    """Read a file's RGB pixels at the network's size: uint8 `(size, size, 3)`. Raises `UndecodableError`."""
    return decode_pixels(read_bytes(path), size, resize)


def decode_pixels(content: bytes, size: int, resize: Resize = "squash") -> np.ndarray:
    """Decode a file's content as `read_pixels` does.

    A JPEG may be decoded at reduced scale, but to at least twice the network's size, so that the resize filter still
    averages over several pixels.
    """
    return np.asarray(fit(decode_image(content, at_least=2 * size), size, resize))
