"""Every file is opened once before anything else happens: bad ones are set aside with a reason, not met in epoch 3."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tl_research.data.decode import FORMATS, UndecodableError, measure
from tl_research.progress import track

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Inspection:
    """What one file turned out to be: `(width, height)` as stored, or the reason why it is set aside."""

    path: Path
    size: tuple[int, int] | None = None
    reason: str | None = None


def inspect(path: Path) -> Inspection:
    """Decodes the whole file, and says how large the image is or why it cannot be read."""
    try:
        return Inspection(path, size=measure(path))
    except UndecodableError as error:
        return Inspection(path, reason=str(error))


def inspect_all(paths: Sequence[Path], threads: int | None = None) -> list[Inspection]:
    """`inspect` over many files, in their order, with a progress bar. Pillow decodes outside the interpreter's lock."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(track(pool.map(inspect, paths), "checking images", total=len(paths)))


def is_image_name(path: Path) -> bool:
    """By its suffix, or, where that says nothing, by its first bytes: people lose suffixes, tools do not read minds."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:
        return False


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorted by name, without what file systems and archivers leave behind (`.DS_Store`, `__MACOSX`, `Thumbs.db`)."""
    return sorted(p for p in paths if not p.name.startswith((".", "__MACOSX")) and p.name not in {"Thumbs.db"})
