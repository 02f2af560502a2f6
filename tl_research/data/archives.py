"""Find the images of an archive that stands for a folder: unpacked once, into the cache."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tl_research.data.kaggle.archive import (
    BY_HAND,
    CHUNK,
    BadArchiveError,
    claim,
    fingerprint,
    is_bomb,
    is_junk,
    name_fault,
    unpack,
    writing,
)

OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar": lambda path: path.open("rb"),
    **dict.fromkeys((".tar.gz", ".tgz"), gzip.open),
    **dict.fromkeys((".tar.bz2", ".tbz2"), bz2.open),
}
SUFFIXES = (".zip", *OPENERS)


def is_archive(path: Path) -> bool:
    """Recognize a zip or tar file by its name."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(archive: Path, cache_folder: Path) -> Path:
    """Return the folder with an archive's files; a second call finds it, wherever the archive has moved. Raises
    `BadArchiveError` naming the archive and the entry, and `InputError` where the cache cannot be written."""
    suffix = next(suffix for suffix in SUFFIXES if archive.name.lower().endswith(suffix))
    folder = cache_folder / "archives" / f"{archive.name[: -len(suffix)]}-{archive_digest(archive)[:12]}"
    return unpack(archive, folder) if suffix == ".zip" else _unpack_tar(archive, folder, OPENERS[suffix])


def archive_digest(archive: Path) -> str:
    """Hash an archive's content: for a zip the names, sizes and CRCs in its directory, for a tar the whole file. Raises
    `BadArchiveError` if it cannot be read."""
    if archive.name.lower().endswith(".zip"):
        return fingerprint(archive)
    try:
        stat = archive.stat()
        return _file_digest(archive, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise BadArchiveError(f"{archive}: cannot be read: {error.strerror or error}") from None


@cache
def _file_digest(archive: Path, *status: int) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _BoundedReads:
    """A tar's bytes, of which no more than a few MiB are read at once: its headers may claim gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > 4 * CHUNK:
            raise tarfile.ReadError("a header of many megabytes")
        self.last = self._stream.read(size)
        return self.last


def _unpack_tar(archive: Path, folder: Path, opener: Callable[[Path], Any]) -> Path:
    """Unpack a tar by the rules for zips (`unpack`), in one pass; an interrupted unpacking begins again."""
    staging = folder.with_name(f".{folder.name}.unpacking")
    with writing(folder), claim(folder.with_name(f".{folder.name}.unpacking.lock")):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with _explained(archive), opener(archive) as stream:
                _extract_all(archive, _BoundedReads(stream), staging)
            if not any(staging.iterdir()):
                raise BadArchiveError(f"{archive}: holds no files")
        except BadArchiveError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.rename(folder)
    return folder


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise BadArchiveError(f"{archive}: not a tar, or cut short or damaged ({error}). Download it again") from None


def _extract_all(archive: Path, stream: _BoundedReads, staging: Path) -> None:
    total = 0
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for number, member in enumerate(tar):
            total += member.size
            if is_bomb(total, number, archive.stat().st_size):
                raise BadArchiveError(f"{archive}: unpacks to many times its size, which looks like a bomb. {BY_HAND}")
            fault = name_fault(member.name) or _kind_fault(member)
            if fault and not (member.isdir() and PurePosixPath(member.name) == PurePosixPath(".")):
                raise BadArchiveError(f"{archive}: the entry {member.name!r} {fault}. {BY_HAND}")
            if member.isreg() and not is_junk(PurePosixPath(member.name)):
                _extract(tar, member, staging, archive)
            tar.members.clear()  # or millions of entries would stay in memory
    if any(stream.last):  # the tar ends with zeros; a damaged header ends it, too
        raise tarfile.ReadError("a damaged header")
    while stream.read(CHUNK):  # to the end, where the checksum is
        pass


def _kind_fault(member: tarfile.TarInfo) -> str | None:
    if not (member.isreg() or member.isdir()):
        return "is a link or a special file"
    return "has holes" if member.issparse() else None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, staging: Path, archive: Path) -> None:
    target, source = staging / member.name, tar.extractfile(member)
    assert source is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:  # fails for a name that is there, also one that differs by case alone
            shutil.copyfileobj(source, file, CHUNK)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise BadArchiveError(f"{archive}: the entry {member.name!r} is there twice. {BY_HAND}") from None
