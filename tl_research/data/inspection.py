"""Check every file before training, so that unreadable ones are set aside with a reason and not met in epoch 3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import Image

from tl_research.data.decode import UndecodableError, UnreadFormatError, measure, read_bytes
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.data.formats import IMAGE_SUFFIXES, RAW_SUFFIXES, READ, is_backup, read_head, unread_format
from tl_research.system.progress import track

JUNK = frozenset(
    {"thumbs.db", "ehthumbs.db", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"__pycache__", "node_modules", "network trash folder", "temporary items", "icon\r"}
)


def inspect(path: Path) -> Inspection:
    """Read and decode a whole file; return its digest and size, or why it cannot be read."""
    digest = b""
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).digest()
        size, values = measure(content)
    except UnreadFormatError as error:  # without a digest it is not remembered: an extra may be installed
        return Inspection(path, reason=str(error), is_unread=True)
    except UndecodableError as error:
        return Inspection(path, digest, reason=str(error))
    return Inspection(path, digest, size, values=values)


def without_unscalable(inspection: Inspection) -> Inspection:
    """Give the inspection of a float image that only a window can scale a reason why it cannot be used without one."""
    fault = inspection.values.fault if inspection.values else None
    return replace(inspection, reason=fault) if fault else inspection


def inspect_all(paths: Sequence[Path], index: FileIndex | None = None) -> list[Inspection]:
    """Inspect many files, in order, with a progress bar; files that `index` knows are not opened. Threads suffice:
    Pillow releases the interpreter's lock."""
    index = index or FileIndex(None)
    known = [index.get(path) for path in paths]
    unknown = [path for path, inspection in zip(paths, known, strict=True) if inspection is None]
    statuses = [index.status(path) for path in unknown]
    if unknown:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            fresh = list(track(pool.map(inspect, unknown), "checking images", total=len(unknown)))
        for inspection, status in zip(fresh, statuses, strict=True):
            index.put(inspection, status)
        index.save()
        rest = iter(fresh)
        return [inspection or next(rest) for inspection in known]
    return [inspection for inspection in known if inspection]


def is_image_name(path: Path) -> bool:
    """Recognize an image by its suffix or, failing that, by its first bytes: some files have lost their suffix. Images
    of formats that are not read here count, so that they are reported; backups do not."""
    if path.suffix.lower() in IMAGE_SUFFIXES | RAW_SUFFIXES:
        return True
    head = b"" if is_backup(path.name) else read_head(path)
    if not head or unread_format(head):
        return bool(head)
    try:
        with Image.open(path, formats=READ):
            return True
    except Exception as error:
        return "MAX_TEXT" in str(error)  # a PNG with a long text


def is_junk(name: str) -> bool:
    """Recognize hidden files and folders, and those of operating systems, archivers and network drives by name."""
    return name.startswith((".", "__MACOSX")) or name.casefold() in JUNK
