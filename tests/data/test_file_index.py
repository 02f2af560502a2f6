"""Test that the file index reopens modified files and no others."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tl_research.data import decode, file_index, inspection
from tl_research.data.file_index import SETTLED_NS, FileIndex, Inspection
from tl_research.data.inspection import inspect, inspect_all

COLOURS = ("red", "green", "blue", "black")


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (5, 4)) -> Path:
    """Write a bitmap, of the same size in bytes whatever its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", size, colour).save(file, "BMP")
    return path


def later(change: Callable[[], object], path: Path) -> None:
    """Modify a file once its file system's clock has advanced."""
    before = path.stat().st_ctime_ns
    change()
    while path.stat().st_ctime_ns == before:
        change()


def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new files count as old enough to be remembered."""
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**9))


@pytest.fixture
def _old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    aged(monkeypatch)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the files that are read."""
    return watched(monkeypatch)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    paths: list[Path] = []
    really = decode.read_bytes
    monkeypatch.setattr(inspection, "read_bytes", lambda path: (paths.append(path), really(path))[1])
    return paths


@pytest.fixture
def index_folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def look(paths: Iterable[Path], index_folder: Path | None) -> list[Inspection]:
    """Inspect as a new process would; assert that the result is right."""
    paths = list(paths)
    found = inspect_all(paths, FileIndex(index_folder))
    assert found == [inspect_untold(path) for path in paths]
    return found


def inspect_untold(path: Path) -> Inspection:
    """Inspect without recording in `opened`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "read_bytes", decode.read_bytes)
        return inspect(path)


old_files = pytest.mark.usefixtures("_old_files")


# Unmodified and modified files


@old_files
def test_an_unmodified_file_is_not_opened_again(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    paths = [draw(tmp_path / f"{i}.bmp", COLOURS[i], (i + 1, 7)) for i in range(4)]
    index = FileIndex(index_folder)
    first = inspect_all(paths, index)
    assert sorted(opened) == paths
    assert [found.size for found in first] == [(1, 7), (2, 7), (3, 7), (4, 7)]
    assert [found.digest for found in first] == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    opened.clear()
    (written,) = [file.stat().st_ino for file in index_folder.iterdir()]
    for again in (inspect_all(paths, index), look(paths, index_folder), look(paths, index_folder)):
        assert again == first
        assert [type(found.size) for found in again] == [tuple] * 4
    assert opened == []
    index.save()
    assert [file.stat().st_ino for file in index_folder.iterdir()] == [written]


def rewritten(path: Path) -> None:
    draw(path, "blue")


def rewritten_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x55")


def replaced(path: Path) -> None:
    draw(path.with_suffix(".new"), "blue").replace(path)


def swapped(path: Path) -> None:
    other = draw(path.with_suffix(".new"), "blue")
    aside = path.rename(path.with_suffix(".old"))
    other.rename(path)
    aside.unlink()


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@old_files
@pytest.mark.parametrize("keeps_times", [False, True])
@pytest.mark.parametrize("change", [rewritten, rewritten_in_place, replaced, swapped, appended, Path.touch])
def test_a_modified_file_is_inspected_again(
    tmp_path: Path, index_folder: Path, opened: list[Path], change: Callable[[Path], None], keeps_times: bool
) -> None:
    path, other = draw(tmp_path / "a.bmp"), draw(tmp_path / "b.bmp")
    look([path, other], index_folder)
    before = path.stat()

    def changed() -> None:
        change(path)
        if keeps_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    later(changed, path)
    assert not keeps_times or path.stat().st_mtime_ns == before.st_mtime_ns
    opened.clear()
    look([path, other], index_folder)
    assert opened == [path]
    look([path, other], index_folder)
    assert opened == [path]


@old_files
@pytest.mark.parametrize("field", ["st_size", "st_ino", "st_mtime_ns", "st_ctime_ns"])
def test_an_entry_is_valid_until_size_inode_or_times_change(
    tmp_path: Path, index_folder: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw(tmp_path / "a.bmp")
    look([path], index_folder)
    really = Path.stat

    class Status:
        def __init__(self, found: os.stat_result):
            self.found = found

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.found, name)
            return value - 1 if name == field else value

    assert FileIndex(index_folder).get(path)
    monkeypatch.setattr(Path, "stat", lambda self, **options: Status(really(self, **options)))
    assert FileIndex(index_folder).get(path) is None


@old_files
def test_a_redirected_link_is_inspected_again(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    link = tmp_path / "link.bmp"
    link.symlink_to(draw(tmp_path / "a.bmp"))
    look([link], index_folder)
    link.unlink()
    link.symlink_to(draw(tmp_path / "b.bmp", "blue"))
    look([link], index_folder)
    assert opened == [link, link]


@old_files
def test_a_moved_file_is_inspected_again(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    path = draw(tmp_path / "a.bmp")
    look([path], index_folder)
    moved = [path.rename(tmp_path / "b.bmp"), tmp_path / "a.bmp"]
    assert [found.reason for found in look(moved, index_folder)] == [None, "no such file"]


@old_files
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_read_is_inspected_again(
    tmp_path: Path, index_folder: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw(tmp_path / "a.bmp")

    def read(path: Path) -> bytes:
        content = decode.read_bytes(path)
        later(lambda: draw(path, "blue"), path)
        return decode.read_bytes(path) if when == "before" else content

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_bytes", read)
        inspect_all([path], FileIndex(index_folder))
    opened = watched(monkeypatch)
    look([path], index_folder)
    assert opened == [path]


def test_a_recently_modified_file_is_not_remembered(
    tmp_path: Path, index_folder: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw(tmp_path / "a.bmp")
    found = path.stat()
    written = max(found.st_mtime_ns, found.st_ctime_ns)
    for waited, times_opened in [(0, 1), (SETTLED_NS, 2), (SETTLED_NS + 1, 3), (SETTLED_NS + 1, 3), (0, 3)]:
        monkeypatch.setattr("time.time_ns", lambda waited=waited: written + waited)
        look([path], index_folder)
        assert len(opened) == times_opened


def test_a_fresh_copy_of_an_old_file_is_not_remembered(
    tmp_path: Path, index_folder: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "SETTLED_NS", 3600 * 10**9)
    path = draw(tmp_path / "a.bmp")
    os.utime(path, (1e9, 1e9))
    index = FileIndex(index_folder)
    for _ in range(2):
        inspect_all([path], index)
    look([path], index_folder)
    assert opened == [path] * 3


changes = st.tuples(
    st.sampled_from(["look", "same", "write", "replace", "utime", "spoil", "delete"]), st.integers(0, 2)
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(changes, st.sampled_from(COLOURS)), max_size=12))
def test_the_index_is_right_after_any_changes(sequence: list[tuple[tuple[str, int], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        aged(patch)
        index_folder, paths = Path(folder) / "index", [Path(folder) / "images" / f"{i}.bmp" for i in range(3)]
        for path in paths:
            draw(path)
        kept = FileIndex(index_folder)
        for (what, which), colour in sequence:
            path = paths[which]
            if what in ("look", "same"):
                assert inspect_all(paths, kept if what == "same" else FileIndex(index_folder)) == [*map(inspect, paths)]
                continue
            before = path.stat() if path.exists() else None
            actions: dict[str, Callable[[], object]] = {
                "write": lambda path=path, colour=colour: draw(path, colour),
                "replace": lambda path=path, colour=colour: draw(path.with_suffix(".new"), colour).replace(path),
                "utime": lambda path=path: path.exists() and os.utime(path, (1e9, 1e9)),
                "spoil": lambda path=path: path.write_bytes(b"no image" * 9),
                "delete": lambda path=path: path.unlink(missing_ok=True),
            }
            if before is None or what == "delete":
                actions[what]()
            else:
                later(actions[what], path)
        look(paths, index_folder)


# What is remembered


@old_files
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "not an image that can be read"), (b"", "empty file"), (None, "truncated")],
    ids=["text", "empty", "cut"],
)
def test_an_undecodable_file_is_remembered_with_its_reason(
    tmp_path: Path, index_folder: Path, opened: list[Path], content: bytes | None, reason: str
) -> None:
    path = draw(tmp_path / "a.bmp", size=(50, 50))
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    (first,) = look([path], index_folder)
    (again,) = look([path], index_folder)
    assert opened == [path]
    assert again == first
    assert again.reason is not None
    assert reason in again.reason
    assert (again.size, again.digest) == (None, hashlib.sha256(path.read_bytes()).digest())
    later(lambda: draw(path), path)
    assert look([path], index_folder)[0].reason is None


@old_files
def test_a_missing_file_is_not_remembered(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    path, folder = tmp_path / "a.bmp", tmp_path / "folder.bmp"
    folder.mkdir()
    for _ in range(2):
        assert [found.reason for found in look([path, folder], index_folder)] == [
            "no such file",
            "a folder, not an image",
        ]
    assert len(opened) == 4
    draw(path)
    assert look([path], index_folder)[0].size == (5, 4)


@old_files
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(), MemoryError()])
def test_a_read_error_is_not_remembered(
    tmp_path: Path, index_folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:

    def read_bytes(_: Path) -> bytes:
        raise error

    path, index = draw(tmp_path / "a.bmp"), FileIndex(index_folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert inspect_all([path], index)[0].reason
    assert look([path], index_folder)[0].reason is None


@old_files
def test_results_are_in_the_order_of_the_paths(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    paths = [draw(tmp_path / f"{i % 3}" / f"{i:02d}.bmp", COLOURS[i % 4], (i + 1, 1)) for i in range(20)]
    paths[13].write_bytes(b"no image")
    known = [3, 13, 0, 19, 8, 7]
    look([paths[i] for i in known], index_folder)
    opened.clear()
    mixed = [*paths[10:], tmp_path / "missing.bmp", *paths[10::-1], paths[12]]
    assert [found.path for found in look(mixed, index_folder)] == mixed
    assert set(opened) == set(mixed) - {paths[i] for i in known}
    assert look(reversed(paths), index_folder) == look(paths, index_folder)[::-1]
    assert look([], index_folder) == []


@old_files
@pytest.mark.parametrize(
    "name",
    ["größer.bmp", "图.bmp", "e\u0301.bmp", "a\nb.bmp", "\U0001f600.bmp", b"\xff.bmp", b"\xf0\x9f\x98\x80\xff\xed.bmp"],
)
@pytest.mark.parametrize("of", ["file", "folder"])
def test_any_file_name_works(
    tmp_path: Path, index_folder: Path, opened: list[Path], name: str | bytes, of: str
) -> None:
    named = tmp_path / os.fsdecode(name)
    path = draw(named if of == "file" else named / "a.bmp")
    first = look([path], index_folder)
    assert look([path], index_folder) == first
    assert opened == [path]


@old_files
def test_files_of_one_name_in_many_folders_are_not_mixed_up(
    tmp_path: Path, index_folder: Path, opened: list[Path]
) -> None:
    paths = [draw(tmp_path / folder / "a.bmp", folder) for folder in COLOURS]
    first = look(paths, index_folder)
    opened.clear()
    assert look(paths, index_folder) == first
    assert opened == []
    assert len(list(index_folder.iterdir())) == 4


@old_files
def test_new_entries_are_added_to_known_ones(tmp_path: Path, index_folder: Path, opened: list[Path]) -> None:
    paths = [draw(tmp_path / f"{i}.bmp") for i in range(6)]
    for start in (0, 2, 4):
        look(paths[start : start + 2], index_folder)
    assert len(opened) == 6
    look(paths, index_folder)
    assert len(opened) == 6


@old_files
def test_two_indexes_saved_in_turn_keep_each_others_entries(
    tmp_path: Path, index_folder: Path, opened: list[Path]
) -> None:
    paths = [draw(tmp_path / f"{i}.bmp") for i in range(4)]
    one, two = FileIndex(index_folder), FileIndex(index_folder)
    for index in (one, two):
        index.get(paths[0])  # both have read their folder's index
    inspect_all(paths[:2], one)
    inspect_all(paths[2:], two)
    opened.clear()
    look(paths, index_folder)
    assert not opened


@old_files
def test_without_a_folder_nothing_is_remembered(
    tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = draw(tmp_path / "images" / "a.bmp")
    index = FileIndex(None)
    for _ in range(2):
        inspect_all([path], index)
        inspect_all([path])
    assert opened == [path] * 4
    assert index.get(path) is None
    assert index.status(path) is None
    index.save()
    assert [found.name for found in tmp_path.iterdir()] == ["images"]


# An index that is damaged, foreign or cannot be written


@pytest.fixture
def known_images(tmp_path: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], Path]:
    """Return two images and the index file that contains them."""
    aged(monkeypatch)
    paths = [draw(tmp_path / "images" / "a.bmp"), tmp_path / "images" / "b.bmp"]
    paths[1].write_bytes(b"no image")
    look(paths, index_folder)
    (file,) = index_folder.iterdir()
    assert all(FileIndex(index_folder).get(path) for path in paths)
    return paths, file


def ignored(paths: list[Path], index_folder: Path) -> bool:
    index = FileIndex(index_folder)
    return [index.get(path) for path in paths] == [None] * len(paths)


@pytest.mark.parametrize("mask", [0x01, 0x02, 0x10, 0x20, 0x80, 0xFF])
def test_an_index_with_a_flipped_byte_is_ignored(known_images: tuple[list[Path], Path], mask: int) -> None:
    paths, file = known_images
    whole = file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= mask
        file.write_bytes(damaged)
        assert ignored(paths, file.parent), (position, mask)


def test_a_truncated_index_is_ignored(known_images: tuple[list[Path], Path]) -> None:
    paths, file = known_images
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert ignored(paths, file.parent), length
    file.write_bytes(whole * 2)
    assert ignored(paths, file.parent)


def test_a_damaged_index_is_rewritten(known_images: tuple[list[Path], Path], opened: list[Path]) -> None:
    paths, file = known_images
    file.write_bytes(file.read_bytes()[:-9])
    for _ in range(2):
        look(paths, file.parent)
        assert sorted(opened) == paths


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", "1", '"a"', '{"files": {}}', "{", "\ud800", '{"a": NaN}'], ids=ascii
)
def test_a_foreign_index_is_ignored(known_images: tuple[list[Path], Path], content: str, signed: bool) -> None:
    paths, file = known_images
    text = content.encode(errors="surrogatepass")
    file.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text if signed else text)
    assert ignored(paths, file.parent)
    look(paths, file.parent)
    assert not ignored(paths, file.parent)


@pytest.mark.parametrize("missing", ["folder", "version", "files"])
def test_an_incomplete_index_is_ignored(known_images: tuple[list[Path], Path], missing: str) -> None:
    paths, file = known_images
    content = json.loads(file.read_text().partition("\n")[2])
    del content[missing]
    text = json.dumps(content)
    file.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    assert ignored(paths, file.parent)


def test_an_index_of_another_folder_is_ignored(known_images: tuple[list[Path], Path], opened: list[Path]) -> None:
    paths, file = known_images
    others = [draw(paths[0].parents[1] / "others" / path.name, "blue") for path in paths]
    look(others, file.parent)
    (other,) = set(file.parent.iterdir()) - {file}
    file.replace(other)
    assert ignored(others, file.parent)
    look(others, file.parent)


@pytest.mark.parametrize("part", sorted(decode.version()))
def test_an_index_of_another_decoder_is_rewritten(
    known_images: tuple[list[Path], Path], opened: list[Path], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, file = known_images
    version = decode.version()
    monkeypatch.setattr(decode, "version", lambda: {**version, part: "another"})
    for _ in range(2):
        look(paths, file.parent)
        assert sorted(opened) == paths


@old_files
@pytest.mark.parametrize("below", [".", "deeper", "deeper/still"])
def test_an_unwritable_folder_is_no_error(tmp_path: Path, opened: list[Path], below: str) -> None:
    (tmp_path / "file").write_text("no folder")
    path = draw(tmp_path / "a.bmp")
    for _ in range(2):
        look([path], tmp_path / "file" / below)
    assert opened == [path] * 2


@old_files
@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_full_disk_is_no_error_and_leaves_nothing(
    tmp_path: Path, index_folder: Path, opened: list[Path], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = draw(tmp_path / "a.bmp")
    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr("os.fdopen", full)
        look([path], index_folder)
    assert list(index_folder.iterdir()) == []
    look([path], index_folder)
    assert opened == [path] * 2


@old_files
def test_an_index_file_that_is_a_folder_is_no_error(known_images: tuple[list[Path], Path]) -> None:
    paths, file = known_images
    file.unlink()
    file.mkdir()
    (file / "something").touch()
    look(paths, file.parent)
    assert ignored(paths, file.parent)


@old_files
def test_the_index_is_replaced_atomically(
    known_images: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, file = known_images
    reader = file.open()
    later(lambda: draw(paths[0], "blue"), paths[0])
    look(paths, file.parent)
    with reader:
        told_, _, content = reader.read().partition("\n")
    assert told_ == hashlib.sha256(content.encode()).hexdigest()
    assert list(file.parent.iterdir()) == [file]
