"""Check every file before training, so that unreadable ones are set aside with a reason and not met in epoch 3."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from tl_research.data.decode import Decoded, UndecodableError, UnreadFormatError, decode_stored, read_bytes
from tl_research.data.file_index import FileIndex, Inspection
from tl_research.data.fingerprint import (
    Fingerprint,
    average_candidates,
    fingerprint_of,
    pixel_candidates,
    with_averages,
    with_pixels,
)
from tl_research.data.formats import IMAGE_SUFFIXES, RAW_SUFFIXES, READ, is_backup, read_head, unread_format
from tl_research.system.hardware import cores
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
        decoded = decode_stored(content)
    except UnreadFormatError as error:  # without a digest it is not remembered: an extra may be installed
        return Inspection(path, reason=str(error), is_unread=True)
    except UndecodableError as error:
        return Inspection(path, digest, reason=str(error))
    return Inspection(path, digest, decoded.size, values=decoded.values, fingerprint=fingerprint_of(decoded))


def without_unscalable(inspection: Inspection) -> Inspection:
    """Give the inspection of a float image that only a window can scale a reason why it cannot be used without one."""
    fault = inspection.values.fault if inspection.values else None
    return replace(inspection, reason=fault) if fault else inspection


def inspect_all(paths: Sequence[Path], index: FileIndex | None = None) -> list[Inspection]:
    """Inspect many files, in order, with a progress bar; files that `index` knows are not opened."""
    index = index or FileIndex(None)
    known = [index.get(path) for path in paths]
    unknown = [Inspection(path) for path, found in zip(paths, known, strict=True) if found is None]
    fresh = iter(_renewed(unknown, lambda one: inspect(one.path), index))
    return [found or next(fresh) for found in known]


def find_equal_pixels(inspections: Sequence[Inspection], index: FileIndex | None = None) -> list[Inspection]:
    """Give readable images that may equal another one the digest of all their pixels: few may, and only these are
    decoded in full, once. Files whose inspection by an older version lacks a fingerprint are inspected again."""
    index, found = index or FileIndex(None), [*inspections]

    def renew(numbers: list[int], read: Callable[[Inspection], Inspection]) -> None:
        for number, fresh in zip(numbers, _renewed([found[n] for n in numbers], read, index), strict=True):
            found[number] = fresh if fresh.digest == found[number].digest else found[number]

    renew([n for n, one in enumerate(found) if not one.fingerprint], lambda one: inspect(one.path))
    for step in ("averages", "pixels"):
        known = [(n, one.digest, one.fingerprint) for n, one in enumerate(found) if one.fingerprint]
        digests, prints = [digest for _, digest, _ in known], [each for *_, each in known]
        chosen = average_candidates(prints) if step == "averages" else pixel_candidates(digests, prints)
        complete = with_averages if step == "averages" else with_pixels
        renew([known[i][0] for i in chosen], partial(_decoded_in_full, complete=complete))
    return found


def _decoded_in_full(one: Inspection, complete: Callable[[Fingerprint, Decoded], Fingerprint]) -> Inspection:
    """Complete an inspection's fingerprint; leave it as it is if the file has changed or does not fit in memory."""
    try:
        content = read_bytes(one.path)
        if one.fingerprint and hashlib.sha256(content).digest() == one.digest:
            return replace(one, fingerprint=complete(one.fingerprint, decode_stored(content, in_full=True)))
    except (UndecodableError, MemoryError):
        pass
    return one


def _renewed(old: Sequence[Inspection], read: Callable[[Inspection], Inspection], index: FileIndex) -> list[Inspection]:
    """Read files, and remember what is found. Threads suffice: Pillow releases the interpreter's lock."""
    if not old:
        return []
    statuses = [index.status(one.path) for one in old]
    with ThreadPoolExecutor(cores()) as pool:
        fresh = list(track(pool.map(read, old), "checking images", total=len(old)))
    for inspection, status in zip(fresh, statuses, strict=True):
        index.put(inspection, status)
    index.save()
    return fresh


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
