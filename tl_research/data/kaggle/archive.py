"""Unpack an untrusted zip into a folder: complete or not at all, and nothing outside it.

Names that differ only in case (`a.jpg`, `A.JPG`) are two files where the file system tells them apart; where it does
not, the archive is refused, because one of the two would be lost. Empty folders are not made.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from tl_research.errors import InputError
from tl_research.system.locks import locked
from tl_research.system.progress import track

MAX_BYTES = 50 * 10**9
MAX_ENTRIES = 5_000_000
# Photographs hardly compress, and a small archive does no harm whatever its ratio.
MAX_RATIO, RATIO_FROM = 200, 10 * 10**6
CHUNK = 1 << 20
BLOCK = 4096
JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
BY_HAND = "If you trust it, unpack it yourself and use data=folder data.root=FOLDER"


class BadArchiveError(InputError):
    """Report an archive that cannot be used; another attempt with the same file will not help."""


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip into `folder`, which appears when it is complete; an existing one is returned as it is.

    An interrupted unpacking stays in `.<name>.unpacking` and is continued: files with the right size and CRC are kept.
    Of several processes one unpacks and the others wait. Raises BadArchiveError naming the archive and the entry, and
    InputError where the disk is full or cannot be written.
    """
    archive, folder = archive.expanduser(), folder.expanduser()
    staging = folder.with_name(f".{folder.name}.unpacking")
    with writing(folder), claim(folder.with_name(f".{folder.name}.unpacking.lock")):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        try:
            with _reading(archive) as source:
                _fill(staging, source, _entries(source, archive), archive)
        except BadArchiveError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.rename(folder)
    return folder


def fingerprint(archive: Path) -> str:
    """Hash the names, sizes and CRCs inside: equal for a renamed or copied archive. Raises as `unpack`."""
    archive = archive.expanduser()
    with _reading(archive) as source:
        entries = _entries(source, archive)
    lines = sorted(f"{name}\0{info.file_size}\0{info.CRC}\n" for name, info in entries.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for other processes; it is removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, f"fills {path.parent}"):  # without locks, CRCs still catch what two writers could spoil
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _reading(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip, and turn the many errors of its reader over damaged bytes into BadArchiveError."""
    try:
        with _open(archive) as source:
            yield source
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError) as e:
        reason = str(e) or type(e).__name__
        raise BadArchiveError(f"{archive}: not a zip, or cut short or damaged ({reason}). Download it again") from None


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except IsADirectoryError:
        raise BadArchiveError(f"{archive}: is a folder; use data=folder data.root={archive}") from None
    except OSError as error:
        raise BadArchiveError(f"{archive}: cannot be read: {error.strerror or error}") from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise `InputError` with what to do about a disk that is full or cannot be written."""
    try:
        yield
    except OSError as error:
        words = f"{folder} cannot be written: {error.strerror or error} ({error.filename})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words = f"the disk is full at {folder.parent}: free some space and run again to go on"
        raise InputError(f"{words}, or set data.cache=FOLDER") from None


def _entries(source: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Map paths inside the folder to the entries to unpack, from the zip's directory alone."""
    infos = source.infolist()
    total = sum(info.file_size for info in infos)
    ratio = total / max(1, archive.stat().st_size)
    if is_bomb(total, len(infos), archive.stat().st_size):
        raise BadArchiveError(
            f"{archive}: would unpack to {total / 1e9:.1f} GB in {len(infos):,} files, {ratio:.0f} times its size, "
            f"which looks like a bomb. {BY_HAND}"
        )
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        fault, path = _fault(info), PurePosixPath(info.filename)
        if fault or str(path) in entries:
            raise BadArchiveError(f"{archive}: the entry {info.filename!r} {fault or 'is there twice'}. {BY_HAND}")
        if not _is_folder(info) and not is_junk(path):
            entries[str(path)] = info
    for folder in {str(parent) for name in entries for parent in PurePosixPath(name).parents} & set(entries):
        raise BadArchiveError(f"{archive}: the entry {folder!r} is a file and a folder. {BY_HAND}")
    if not entries:
        raise BadArchiveError(f"{archive}: holds no files")
    return entries


def is_bomb(total: int, entries: int, packed: int) -> bool:
    """Tell whether so many bytes and entries in an archive of so many bytes are no collection of photographs."""
    return total > MAX_BYTES or entries > MAX_ENTRIES or (total > MAX_RATIO * max(1, packed) and total > RATIO_FROM)


def is_junk(path: PurePosixPath) -> bool:
    """Recognize what operating systems leave in archives."""
    return path.name in JUNK or "__MACOSX" in path.parts


def name_fault(name: str) -> str | None:
    """Say why an entry of this name is refused; None if it is not."""
    parts = PurePosixPath(name).parts
    if not parts:
        return "has no name"
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or ".." in parts:
        return "would leave the folder"
    if "\0" in name or any(len(os.fsencode(part)) > 255 for part in parts):
        return "has a name that no file can have"
    return None


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Say why an entry is refused. `orig_filename` is the name in the zip, `filename` Python's reading of it."""
    for name in (info.orig_filename, info.filename):
        fault = name_fault(name)
        if fault and not (fault == "has no name" and _is_folder(info)):
            return fault
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.header_offset < 0:
        return "lies outside the archive, which is damaged"
    if info.flag_bits & 0x1:
        return "is encrypted"
    # Others (bzip2, lzma) let a few bytes grow to gigabytes in memory before they can be counted.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by an unusual method"
    return None


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith("/") or stat.S_ISDIR(info.external_attr >> 16)


def _fill(staging: Path, source: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], archive: Path) -> None:
    staging.mkdir(exist_ok=True)
    _demand_distinct(staging, entries, archive)
    _remove_strangers(staging, entries)
    missing = [name for name, info in entries.items() if not _is_complete(staging / name, info)]
    need = sum(entries[name].file_size + BLOCK for name in missing)
    free = shutil.disk_usage(staging).free
    if need > free:
        raise InputError(
            f"{archive}: unpacking needs {need / 1e9:.2f} GB and {staging.parent} has {free / 1e9:.2f} GB free. "
            "Free some space, or choose another folder with data.cache=FOLDER"
        )
    for name in track(missing, f"unpacking {archive.name}"):
        extract_entry(source, entries[name], staging / name, archive)


def _demand_distinct(staging: Path, entries: dict[str, zipfile.ZipInfo], archive: Path) -> None:
    if not folds_case(staging):
        return
    seen: dict[str, str] = {}
    for name in entries:
        for path in (name, *map(str, PurePosixPath(name).parents)):
            other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other != path:
                raise BadArchiveError(f"{archive}: {other!r} and {path!r} are one name to this file system. {BY_HAND}")


def folds_case(staging: Path) -> bool:
    """Check whether the file system takes names that differ only in case for one."""
    return staging.with_name(staging.name.swapcase()).exists()


def _remove_strangers(staging: Path, entries: dict[str, zipfile.ZipInfo]) -> None:
    """Delete the files that another archive of this name left behind when it was interrupted."""
    for path in sorted(staging.rglob("*"), reverse=True):  # children before their folders
        if path.is_symlink() or not path.is_dir():
            if path.is_symlink() or path.relative_to(staging).as_posix() not in entries:
                path.unlink()
        else:
            with suppress(OSError):  # not empty: it is needed
                path.rmdir()


def _is_complete(path: Path, info: zipfile.ZipInfo) -> bool:
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def extract_entry(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    """Write one file. Python checks its CRC; its size is counted here, because the entry may lie about it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source.open(info) as stream, target.open("wb") as file:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > info.file_size:
                break
            file.write(chunk)
    if written != info.file_size:
        raise BadArchiveError(f"{archive}: the entry {info.filename!r} is not as long as it says. Download it again")
