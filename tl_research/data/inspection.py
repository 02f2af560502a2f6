"""Every file is opened once before anything else happens: bad ones are set aside with a reason, not met in epoch 3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from tl_research.data.decode import FORMATS, UndecodableError, measure, read_bytes
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.system.progress import track

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})


def inspect(path: Path) -> Inspection:
    """Reads and decodes the whole file, and says what it holds or why it cannot be read."""
    try:
        content = read_bytes(path)
    except UndecodableError as error:
        return Inspection(path, reason=str(error))
    digest = hashlib.sha256(content).digest()
    try:
        return Inspection(path, digest, size=measure(content))
    except UndecodableError as error:
        return Inspection(path, digest, reason=str(error))


def inspect_all(paths: Sequence[Path], index: FileIndex | None = None) -> list[Inspection]:
    """`inspect` over many files, in their order, with a progress bar; those that `index` knows are not opened again.
    Pillow decodes outside the interpreter's lock."""
    index = index or FileIndex(None)
    found = [index.get(path) for path in paths]
    unknown = [path for path, inspection in zip(paths, found, strict=True) if inspection is None]
    statuses = [index.status(path) for path in unknown]
    if unknown:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            fresh = list(track(pool.map(inspect, unknown), "checking images", total=len(unknown)))
        for inspection, status in zip(fresh, statuses, strict=True):
            index.put(inspection, status)
        index.save()
        rest = iter(fresh)
        return [inspection or next(rest) for inspection in found]
    return [inspection for inspection in found if inspection]


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
