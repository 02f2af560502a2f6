"""A zip is unpacked whole or not at all, and nothing is ever written outside the folder."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tl_research.data.kaggle import archive
from tl_research.data.kaggle.archive import BadArchiveError, fingerprint, unpack
from tl_research.errors import InputError

FILES = {f"train/{name}/{i}.jpg": random.Random(f"{name}{i}").randbytes(3000) for name in "ab" for i in range(4)}


def make_zip(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """Entry names go in as they are; `change` may make the entries lie."""
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            info = zipfile.ZipInfo()
            info.filename = info.orig_filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            target.writestr(info, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(path: Path, folder: Path) -> str:
    """The one line of a refusal; nothing may be left behind."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(BadArchiveError) as caught:
        unpack(path, folder)
    assert sorted(folder.parent.iterdir()) == before
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "good.zip", FILES)


def test_a_zip_becomes_a_folder(good: Path, tmp_path: Path) -> None:
    assert unpack(good, tmp_path / "deep" / "data") == tmp_path / "deep" / "data"
    assert tree(tmp_path / "deep") == {f"data/{name}": content for name, content in FILES.items()}


def test_a_complete_folder_is_returned_as_it_is(good: Path, tmp_path: Path) -> None:
    folder = unpack(good, tmp_path / "data")
    good.unlink()
    assert unpack(good, folder) == folder


def test_junk_is_left_out(tmp_path: Path) -> None:
    junk = {"__MACOSX/train/a/._0.jpg": b"", "train/.DS_Store": b"", "train/a/Thumbs.db": b"", "train/empty/": b""}
    path = make_zip(tmp_path / "mac.zip", {**junk, **FILES})
    assert tree(unpack(path, tmp_path / "data")) == FILES
    assert not (tmp_path / "data" / "train" / "empty").exists()


CLIMBING = ["../x", "a/../../x", "..", "a\\..\\x", "..\\x", "a/..", "__MACOSX/../x"]
ABSOLUTE = ["/tmp/x", "//host/x", "C:x", "c:/x", "\\x"]


@pytest.mark.parametrize("name", CLIMBING + ABSOLUTE)
def test_entries_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "evil.zip", {"fine.jpg": b"1", name: b"2"})
    message = refused(path, tmp_path / "data")
    assert repr(name) in message
    assert "leave the folder" in message


@pytest.mark.parametrize(
    ("name", "words"), [("a\0.jpg", "no file can have"), ("a" * 300, "no file can have"), (".", "no name")]
)
def test_impossible_names(name: str, words: str, tmp_path: Path) -> None:
    assert words in refused(make_zip(tmp_path / "evil.zip", {name: b"1"}), tmp_path / "data")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_special_files(kind: int, tmp_path: Path) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = (kind | 0o777) << 16

    path = make_zip(tmp_path / "evil.zip", {"link": b"/etc/passwd"}, change)
    assert "'link' is a link or a special file" in refused(path, tmp_path / "data")


def test_encrypted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "secret.zip", {"a.jpg": b"1"})
    set_in_directory(path, 8, struct.pack("<H", 1))  # the flags
    assert "'a.jpg' is encrypted" in refused(path, tmp_path / "data")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded(method: int, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "odd.zip", {"a.jpg": b"1"}, lambda info: setattr(info, "compress_type", method))
    assert "'a.jpg' is compressed by an unusual method" in refused(path, tmp_path / "data")


def test_a_name_twice(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "twice.zip", {"x/a.jpg": b"1", "x/./a.jpg": b"2"})
    assert "is there twice" in refused(path, tmp_path / "data")


def test_a_file_that_is_also_a_folder(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "odd.zip", {"a/b.jpg": b"1", "a": b"2"})
    assert "'a' is a file and a folder" in refused(path, tmp_path / "data")


def test_names_that_differ_in_case_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "case.zip", {"cat/a.jpg": b"1", "Cat/a.jpg": b"2"})
    if not archive.folds_case(tmp_path):
        assert tree(unpack(path, tmp_path / "two")) == {"cat/a.jpg": b"1", "Cat/a.jpg": b"2"}
    monkeypatch.setattr(archive, "folds_case", lambda folder: True)
    assert "'cat/a.jpg' and 'Cat/a.jpg' are one name" in refused(path, tmp_path / "one")


def test_a_bomb_by_ratio(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"a.bmp": bytes(20_000_000)})
    assert "looks like a bomb" in refused(path, tmp_path / "data")


def test_a_small_archive_may_compress_well(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "flat.zip", {"a.bmp": bytes(2_000_000)})
    assert unpack(path, tmp_path / "data").is_dir()


def test_a_bomb_by_size(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 23_999)
    assert "0.0 GB in 8 files" in refused(good, tmp_path / "data")


def test_a_bomb_of_overlapping_entries(tmp_path: Path) -> None:
    """Many entries that share one stream: each is modest, the directory alone shows the sum."""
    path = make_zip(tmp_path / "overlap.zip", {"a": os.urandom(30_000)})
    raw = path.read_bytes()
    start = raw.rindex(b"PK\1\2")
    end = raw.rindex(b"PK\5\6")
    count = 1000
    entries = b"".join(raw[start : end - 1] + bytes([65 + i % 26]) for i in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0)
    path.write_bytes(raw[:start] + entries + tail)
    assert "looks like a bomb" in refused(path, tmp_path / "data")


@pytest.mark.parametrize("claim", [2_999, 3_001, 10])
def test_an_entry_that_lies_about_its_size(claim: int, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "liar.zip", {"a.jpg": random.Random(0).randbytes(3000)})
    set_in_directory(path, 24, struct.pack("<L", claim))
    assert refused(path, tmp_path / "data")


def test_what_is_read_is_counted(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if Python's reader were to give more than the entry says."""
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n: bytes(n))
    assert "not as long as it says" in refused(good, tmp_path / "data")


def set_in_directory(path: Path, offset: int, value: bytes) -> None:
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\1\2") + offset
    raw[start : start + len(value)] = value
    path.write_bytes(raw)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4" + bytes(100)])
def test_not_a_zip(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    assert "not a zip" in refused(path, tmp_path / "data")


def test_no_file_a_folder_and_nothing_inside(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.zip", tmp_path / "data")
    assert "is a folder" in refused(tmp_path, tmp_path / "data")
    assert "holds no files" in refused(make_zip(tmp_path / "empty.zip", {"a/": b""}), tmp_path / "data")


def test_an_entry_that_begins_before_the_archive(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    start = raw.rindex(b"PK\5\6") + 16
    (offset,) = struct.unpack_from("<L", raw, start)
    struct.pack_into("<L", raw, start, offset + 1000)
    good.write_bytes(raw)
    assert "lies outside the archive" in refused(good, tmp_path / "data")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_cut_short(share: float, good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    good.write_bytes(raw[: int(len(raw) * share)])
    assert "cut short" in refused(good, tmp_path / "data")


def test_a_damaged_byte_is_found_by_the_crc(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    raw[2000] ^= 1
    good.write_bytes(raw)
    assert "damaged" in refused(good, tmp_path / "data")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_gives_the_files_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("damage")
    path = make_zip(home / "x.zip", {"a/1.jpg": b"one" * 20, "b/2.jpg": b"two"})
    raw = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        folder = unpack(path, home / "data")
    except InputError:
        assert sorted(p.name for p in home.iterdir()) == ["x.zip"]
    else:
        assert set(tree(folder).values()) <= {b"one" * 20, b"two"}
    finally:
        shutil.rmtree(home)


PIECES = ["..", ".", "/", "\\", "C:", "a", "data", ".data.unpacking", "~", "\0", "é", " ", "%2e%2e"]
NAMES = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=8).map("/".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)


@given(st.lists(NAMES, min_size=1, max_size=3), st.booleans())
@example(["{home}/../canary"], False)
@example(["x", "../data/y"], False)
@settings(max_examples=200, deadline=None)
def test_nothing_is_written_outside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], absolute: bool
) -> None:
    home = tmp_path_factory.mktemp("outside")
    inner = home / "one" / "two"
    inner.mkdir(parents=True)
    names = [f"{inner}/{name}" if absolute else name.format(home=inner) if "{home}" in name else name for name in names]
    path = make_zip(home / "x.zip", dict.fromkeys(names, b"x"))
    try:
        unpack(path, inner / "data")
    except InputError:
        expected: set[Path] = set()
    else:
        expected = {inner / "data"}
    assert set(inner.iterdir()) == expected
    assert set(home.iterdir()) == {path, home / "one"}
    assert set((home / "one").iterdir()) == {inner}
    shutil.rmtree(home)


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def track(items: list[str], description: str) -> Iterator[str]:
        yield from items[:count]
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "track", track)


def test_an_interrupted_unpacking_is_taken_up_again(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(5, patched)
        with pytest.raises(KeyboardInterrupt):
            unpack(good, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    staging = tmp_path / ".data.unpacking"
    names = list(FILES)
    (staging / names[0]).write_bytes(FILES[names[0]][:1000])  # as a kill leaves it
    (staging / names[1]).write_bytes(bytes(3000))  # the right size, not the right bytes
    (staging / "train" / "c").mkdir()
    (staging / "train" / "c" / "other.jpg").write_bytes(b"of another archive")
    extracted: list[str] = []
    extract = archive.extract_entry

    def noted(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, path: Path) -> None:
        extracted.append(info.filename)
        extract(source, info, target, path)

    monkeypatch.setattr(archive, "extract_entry", noted)
    assert tree(unpack(good, tmp_path / "data")) == FILES
    assert extracted == [names[0], names[1], *names[5:]]
    assert sorted(p.name for p in (tmp_path / "data" / "train").iterdir()) == ["a", "b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "good.zip"]


def test_too_little_space_is_found_before_anything_is_unpacked(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=24_000))
    with pytest.raises(InputError, match=r"unpacking needs 0.00 GB and .* data.cache="):
        unpack(good, tmp_path / "data")
    assert tree(tmp_path) == {"good.zip": good.read_bytes()}


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written: Permission denied")]
)
def test_a_disk_that_fails_midway(
    number: int, words: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(archive, "extract_entry", fail)
    with pytest.raises(InputError, match=words) as caught:
        unpack(good, tmp_path / "data")
    assert not isinstance(caught.value, BadArchiveError)  # the archive is not to blame, and not to be thrown away
    assert not (tmp_path / "data").exists()


def test_two_at_once_both_end_fine(good: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tl_research.data.kaggle import archive\n"
        "extract = archive.extract_entry\n"
        "def slow(*args):\n    print(1, flush=True); time.sleep(0.05); extract(*args)\n"
        "archive.extract_entry = slow\n"
        "archive.unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(good), str(tmp_path / "data")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate(timeout=60)[0].count("1") for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(lines) == [0, len(FILES)]  # one worked, the other waited
    assert tree(tmp_path) == {"good.zip": good.read_bytes()} | {f"data/{n}": c for n, c in FILES.items()}


def test_the_fingerprint_is_of_the_content(good: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(good, tmp_path / "copy.zip"))
    assert fingerprint(copy) == fingerprint(good)
    assert fingerprint(make_zip(tmp_path / "other.zip", FILES | {"train/a/0.jpg": bytes(3000)})) != fingerprint(good)
    with pytest.raises(BadArchiveError, match="leave the folder"):
        fingerprint(make_zip(tmp_path / "evil.zip", {"../x": b""}))
