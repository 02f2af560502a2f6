"""Check every file before training, so that unreadable ones are set aside with a reason and not met in epoch 3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from tl_research.data.decode import FORMATS, UndecodableError, measure, read_bytes
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.system.hardware import cores
from tl_research.system.progress import track

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})


def inspect(path: Path) -> Inspection:
    """Read and decode a whole file; return its digest and size, or why it cannot be read."""
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
    """Inspect many files, in order, with a progress bar; files that `index` knows are not opened. Threads suffice:
    Pillow releases the interpreter's lock."""
    index = index or FileIndex(None)
    known = [index.get(path) for path in paths]
    unknown = [path for path, inspection in zip(paths, known, strict=True) if inspection is None]
    statuses = [index.status(path) for path in unknown]
    if unknown:
        with ThreadPoolExecutor(cores()) as pool:
            fresh = list(track(pool.map(inspect, unknown), "checking images", total=len(unknown)))
        for inspection, status in zip(fresh, statuses, strict=True):
            index.put(inspection, status)
        index.save()
        rest = iter(fresh)
        return [inspection or next(rest) for inspection in known]
    return [inspection for inspection in known if inspection]


def is_image_name(path: Path) -> bool:
    """Recognize an image by its suffix or, failing that, by its first bytes: some files have lost their suffix."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe would block for ever
            return False
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:
        return False


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sort by name and leave out files of operating systems and archivers (`.DS_Store`, `__MACOSX`, `Thumbs.db`)."""
    return sorted(p for p in paths if not p.name.startswith((".", "__MACOSX")) and p.name not in {"Thumbs.db"})
