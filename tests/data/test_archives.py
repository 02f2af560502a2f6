"""Test that an archive stands for its folder, and that a tar is unpacked by the rules for zips."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import draw_tree
from tl_research.data.archives import archive_digest, is_archive, unpacked
from tl_research.data.kaggle.archive import BadArchiveError
from tl_research.data.sources import Folder

KINDS = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".TGZ": "gztar", ".tar.bz2": "bztar"}


def make_tar(path: Path, *members: tuple[str, bytes, dict[str, object]]) -> Path:
    with tarfile.open(path, "w") as target:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            target.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_is_read_as_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = draw_tree(tmp_path / "in" / "photos", {"red": 6, "blue": 6})
    made = shutil.make_archive(str(tmp_path / "made"), KINDS[suffix], tmp_path / "in")
    archive = Path(made).rename(tmp_path / f"photos{suffix}")
    source = Folder(root=str(archive), cache=str(tmp_path / "cache"))
    source.preflight()
    assert not (tmp_path / "cache").exists()
    data, plain = source.load(), Folder(root=str(folder)).load()
    assert list(data.digests) == list(plain.digests)
    assert data.split_of.tolist() == plain.split_of.tolist()
    (tmp_path / "moved").mkdir()
    moved = archive.rename(tmp_path / "moved" / archive.name)
    assert Folder(root=str(moved), cache=str(tmp_path / "cache")).load().paths == data.paths


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("../out.jpg", {}, "would leave"),
        ("/out.jpg", {}, "would leave"),
        ("a\\b.jpg", {}, "would leave"),
        ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "a link"),
        ("b.jpg", {"type": tarfile.LNKTYPE, "linkname": "a.jpg", "size": 0}, "a link"),
        ("a.jpg", {"type": tarfile.CHRTYPE, "size": 0}, "special"),
        ("first.jpg", {}, "twice"),
        ("first.jpg/inside.jpg", {}, "twice"),
    ],
)
def test_a_tar_with_a_bad_entry_is_refused(tmp_path: Path, name: str, more: dict[str, object], words: str) -> None:
    archive = make_tar(tmp_path / "a.tar", ("first.jpg", b"1", {}), (name, b"2", more))
    with pytest.raises(BadArchiveError, match=words):
        unpacked(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "archives").iterdir())
    assert not (tmp_path / "out.jpg").exists()


def whole(tmp_path: Path) -> bytes:
    files = ((f"a/{number}.jpg", bytes([number]) * 2000, {}) for number in range(1, 4))
    return make_tar(tmp_path / "whole.tar", *files).read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut.tgz": lambda content: gzip.compress(content)[:-30],
    "checksum.tgz": lambda content: gzip.compress(content)[:-8] + bytes(8),
    "header.tar": lambda content: content[:2600] + b"?" + content[2601:],
    "cut.tar": lambda content: content[:4000],
    "text.tar": lambda content: b"no tar" * 200,
    "empty.tar": lambda content: content[-1024:],
    "nothing.tgz": lambda content: b"",
    "bomb.tgz": lambda content: gzip.compress(tarfile.TarInfo("a.jpg").tobuf()[:124] + b"10000000000\0" + bytes(376)),
    "long_header.tgz": lambda content: gzip.compress(pax(60 * 2**20)),
}


def pax(size: int) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf() + bytes(size)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_tar_is_an_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGES[name](whole(tmp_path)))
    with pytest.raises(BadArchiveError, match=name):
        unpacked(tmp_path / name, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "archives").iterdir())


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    assert not is_archive(tmp_path / "folder.zip")
    with pytest.raises(BadArchiveError, match="cannot be read"):
        archive_digest(tmp_path / "missing.tar")
