"""Decode any image file to upright RGB pixels."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from tl_research.data.formats import HEAD, NO_RAW, READ, is_heic, read_head, unread_format
from tl_research.data.pixel_range import AS_STORED, DeepValues, PixelRange, join_bytes, low_byte_mode, read_in_mode

Resize = Literal["squash", "crop", "pad"]

DECODER_VERSION = "7d5b110b7d584438"
"""Change it to any other text whenever a file's pixels change, or which files are unreadable: stored features are then
no longer used, and files are checked again. (The first value is the hash of this file at commit aeace94, so that
features stored then remain valid.)"""

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels, and around an image with `resize=pad`: white, the most common paper."""

# Warnings about damaged EXIF blocks and odd palettes help no user; undecodable files raise an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Larger images are decoded one at a time, or memory would grow with the number of threads.
HUGE = 40_000_000
_huge_lock = threading.Lock()
os.register_at_fork(before=_huge_lock.acquire, after_in_parent=_huge_lock.release, after_in_child=_huge_lock.release)

NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
DEEP_COLOUR = (PNG, b"II", b"MM")  # PNG and TIFF: their colours may have 16 bits
IMAGE_KIND, SUB_IMAGES, DNG_VERSION = 254, 330, 50706  # TIFF tags
REDUCED = 1

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def limit_pixels(most: int) -> None:
    """Let this process refuse images with more pixels than that. Pillow, which checks on opening, has a limit of its
    own: 179 megapixels, half a gigabyte uncompressed, are an attack or a mistake."""
    Image.MAX_IMAGE_PIXELS = most // 2


class UndecodableError(Exception):
    """A file cannot be decoded; the message is a short reason."""


class UnreadFormatError(UndecodableError):
    """A file is whole, as far as known, but of a format that is not read here."""


def version() -> dict[str, str]:
    """Return what pixels depend on besides the file: this module's version, Pillow, and its image libraries."""
    return {
        "code": DECODER_VERSION,
        "pillow": PIL.__version__,
        **{name: str(features.version(name)) for name in ("jpg", "libjpeg_turbo", "webp", "libtiff")},
    }


def read_bytes(path: Path) -> bytes:
    """Read a regular file; raise `UndecodableError` with the reason if that fails, `UnreadFormatError` for a format
    that the first bytes and the suffix tell to be in vain."""
    try:
        if not path.is_file():  # reading a pipe would block for ever
            raise UndecodableError(_what_else(path))
        unread = unread_format(read_head(path), path.suffix)
        if unread:
            raise UnreadFormatError(unread)
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise UndecodableError(_reason(error)) from None


def open_image(path: Path, at_least: int | None = None, pixel_range: PixelRange = AS_STORED) -> Image.Image:
    """Open a file and decode it as `decode_image`. Raises `UndecodableError`."""
    return decode_image(read_bytes(path), at_least, pixel_range)


def decode_image(content: bytes, at_least: int | None = None, pixel_range: PixelRange = AS_STORED) -> Image.Image:
    """Decode a file's content to upright 8-bit RGB.

    `at_least` allows a JPEG to be decoded at reduced scale, with no side below that many pixels (the format offers 1/2,
    1/4 and 1/8 at a fraction of the cost). `pixel_range` scales images with more than 8 bits a channel. Of an animation
    the first frame is used. Raises `UndecodableError`.
    """
    return _decoded(content, at_least, pixel_range).image


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image decoded as it is stored: upright RGB, the stored `(width, height)`, and what the file tells of it."""

    image: Image.Image
    size: tuple[int, int]
    format: str
    """Pillow's name; empty for an array."""
    turn: Image.Transpose | None
    """What made it upright."""
    box: tuple[float, float, float, float] | None
    """Of a JPEG at reduced scale: the part of the pixels, before the turn, that the image fills."""
    values: DeepValues | None
    deep: np.ndarray | None
    """The values of an image with more than 8 bits a channel, before the turn, and its alpha channel if it has one."""


def decode_stored(content: bytes, *, in_full: bool = False) -> Decoded:
    """Decode the whole content, a JPEG at 1/8 scale unless `in_full`: this detects damaged or truncated streams, too.
    Values of more than 8 bits are measured, and not scaled. Raises `UndecodableError`."""
    return _decoded(content, None if in_full else 1, pixel_range=None)


def _decoded(content: bytes, at_least: int | None, pixel_range: PixelRange | None) -> Decoded:
    try:
        with _opened(content) as image:
            return _pixels(image, content, at_least, pixel_range)
    except Image.DecompressionBombError:
        raise UndecodableError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} megapixels") from None
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers hit: OSError, SyntaxError, struct.error
        if "MAX_TEXT" in str(error) and (smaller := _without_text(content)) != content:
            return _decoded(smaller, at_least, pixel_range)
        raise UndecodableError(_reason(error, empty=not content)) from None


def _opened(content: bytes) -> Image.Image:
    unread = unread_format(content[:HEAD])
    if unread:
        raise UnreadFormatError(unread)
    if content.startswith(NPY):
        return Image.fromarray(_stored_array(content))
    return Image.open(io.BytesIO(content), formats=("HEIF",) if is_heic(content[:HEAD]) else READ)


def _stored_array(content: bytes) -> np.ndarray:
    """Read NumPy's file format, as `from_arrays` writes it, without trust in the size that it claims."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array in another version of NumPy's format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype not in (np.uint8, np.uint16) or 0 in shape:
        raise ValueError(f"an array of {dtype} {shape}, not an image")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def _pixels(image: Image.Image, content: bytes, at_least: int | None, pixel_range: PixelRange | None) -> Decoded:
    """Load an opened image and make it upright RGB. Its values are determined where there is no `pixel_range`."""
    if image.format == "TIFF" and _is_raw(image):
        raise UnreadFormatError(NO_RAW)
    size, format_ = image.size, image.format or ""
    reduced = image.draft("RGB", (at_least, at_least)) if at_least else None
    with _huge_lock if image.width * image.height > HUGE else nullcontext():
        image.load()
        turn = exif_turn(image)
        deep = _deep_values(image, content, pixel_range)
        values = None if deep is None else DeepValues.of(deep)
        if deep is not None:
            alpha = image.getchannel("A") if image.mode == "RGBA" else None
            if pixel_range is not None:
                image = Image.fromarray(pixel_range.eight_bits(deep))
                if alpha:
                    image.putalpha(alpha)
            elif alpha:
                deep = np.dstack([deep, np.asarray(alpha)])
        image = _rgb(image)
        upright = image if turn is None else image.transpose(turn)
        return Decoded(upright, size, format_, turn, reduced[1] if reduced else None, values, deep)


def _deep_values(image: Image.Image, content: bytes, pixel_range: PixelRange | None) -> np.ndarray | None:
    """Return the values of a loaded image with more than 8 bits, where they count: `(h, w)` or `(h, w, 3)`."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    if content.startswith(DEEP_COLOUR) and (pixel_range is None or not pixel_range.keeps(is_float=False)):
        with _opened(content) as again:
            mode = low_byte_mode(again)
            return join_bytes(np.asarray(image), read_in_mode(again, mode), mode) if mode else None
    return None


def _is_raw(image: Image.Image) -> bool:
    """Recognize a camera RAW file that is a TIFF whose first image is a thumbnail (or that has a DNG version)."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return DNG_VERSION in tags or (SUB_IMAGES in tags and bool(tags.get(IMAGE_KIND, 0) & REDUCED))


def _without_text(content: bytes) -> bytes:
    """Drop the texts and the colour profile of a PNG, which may unpack to more than Pillow allows."""
    parts, start = [PNG], len(PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(content[start:end])
        start = end
    return b"".join(parts)


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
        return "empty file" if empty else "not an image that can be read (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, HEIC)"
    words = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in words.lower() else words[:120]


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an image upright, by its EXIF orientation. `ImageOps.exif_transpose` also rewrites the EXIF
    block, and fails if it is damaged."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


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


def read_pixels(path: Path, size: int, resize: Resize = "squash", pixel_range: PixelRange = AS_STORED) -> np.ndarray:
    """Read a file's RGB pixels at the network's size: uint8 `(size, size, 3)`. Raises `UndecodableError`."""
    return decode_pixels(read_bytes(path), size, resize, pixel_range)


def decode_pixels(
    content: bytes, size: int, resize: Resize = "squash", pixel_range: PixelRange = AS_STORED
) -> np.ndarray:
    """Decode a file's content as `read_pixels` does.

    A JPEG may be decoded at reduced scale, but to at least twice the network's size, so that the resize filter still
    averages over several pixels.
    """
    return np.asarray(fit(decode_image(content, 2 * size, pixel_range), size, resize))
