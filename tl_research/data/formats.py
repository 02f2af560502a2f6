"""Tell files by name and first bytes: images, formats that this installation does not read, backups, and junk."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from PIL import features

READ = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
"""Formats accepted, whatever the file's name. Pillow knows forty more, some of which (EPS) start other programs."""

RAW_SUFFIXES = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
        *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    )
)
"""Camera RAW. Most are TIFF files by their bytes, of which Pillow would read the thumbnail."""

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""Endings of files by the format that they promise; MPO, which phones write for several JPEGs in one, is JPEG."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)

HEAD = 64  # bytes that tell the format
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
NO_HEIC = "HEIC, the photographs of phones: pip install 'tl_research[heic]' to read them, or convert them to JPEG"
NO_AVIF = "AVIF, which the installed Pillow was built without: pip install --upgrade pillow, or convert it to JPEG"
NO_RAW = "camera RAW; develop it to JPEG, PNG or TIFF"

_BACKUP = re.compile(
    r".*(~|#|\.(bak|backup|save|old|orig|swp|te?mp|part|partial|(cr|op)?download)|\.\w+_original)", re.IGNORECASE
)


def is_backup(name: str) -> bool:
    """Recognize what editors, exiftool and unfinished downloads leave beside an image: `x.jpg~`, `x.jpg_original`."""
    return _BACKUP.fullmatch(name) is not None


def belongs_to(suffix: str, format_: str) -> bool:
    """Tell whether a suffix promises the format that a file has, by Pillow's name, or none that is known."""
    promised = next((name for name, suffixes in SUFFIXES_OF.items() if suffix.lower() in suffixes), None)
    return promised is None or not format_ or promised == {"MPO": "JPEG", "DIB": "BMP"}.get(format_, format_)


def unread_format(head: bytes, suffix: str = "") -> str | None:
    """Say which format a file has that is not read here, and what to do, by its first bytes and its suffix; None for
    all other files."""
    kinds = brands(head)
    if kinds & {b"crx "} or head.startswith(RAW_HEADS):
        return NO_RAW
    if suffix.lower() in RAW_SUFFIXES and head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return NO_RAW
    if kinds & AVIF_BRANDS:
        return None if features.check("avif") else NO_AVIF
    return NO_HEIC if is_heic(head) and not heic_opener() else None


def is_heic(head: bytes) -> bool:
    """Recognize a HEIC file by its first bytes; an AVIF file may name HEIC's general brands, too."""
    kinds = brands(head)
    return bool(kinds & HEIC_BRANDS) and not kinds & AVIF_BRANDS


def brands(head: bytes) -> set[bytes]:
    """List the brands that the first box of an ISO media file names; empty for other files."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), HEAD)
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


@cache
def heic_opener() -> bool:
    """Have Pillow read HEIC, if the extra `heic` is installed; return whether it is."""
    if find_spec("pillow_heif") is None:
        return False
    import_module("pillow_heif").register_heif_opener()
    return True


def is_plain(path: Path) -> bool:
    """Tell by the first bytes that an image has 8 bits a channel, and is no TIFF."""
    head = read_head(path)
    if head.startswith(b"\x89PNG"):
        return head[24:25] < b"\x10"
    return head.startswith((b"\xff\xd8", b"GIF8", b"BM", b"RIFF"))


def read_head(path: Path) -> bytes:
    """Read the first bytes of a regular file; empty if that fails."""
    try:
        if not path.is_file():  # opening a pipe would block for ever
            return b""
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
