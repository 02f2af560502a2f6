"""Test that the file index reopens modified files and no others."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tl_research.data import decode, file_index, inspection
from tl_research.data.file_index import SETTLED_NS, FileIndex, Inspection
from tl_research.data.inspection import inspect, inspect_all

COLOURS = ("red", "green", "blue", "black")


class Images:
    """A folder of images, the folder of their index, and the files that were read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index_folder = folder / "index"
        self.opened: list[Path] = []

    def draw(self, name: str = "a.bmp", colour: str = "red", size: tuple[int, int] = (5, 4)) -> Path:
        """Write a bitmap, of the same size in bytes whatever its colour."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.new("RGB", size, colour).save(file, "BMP")
        return path

    def read(self, path: Path) -> bytes:
        self.opened.append(path)
        return decode.read_bytes(path)

    def look(self, *paths: Path) -> list[Inspection]:
        """Inspect as a new process would; assert that the result is right."""
        found = inspect_all(paths, FileIndex(self.index_folder))
        opened = [*self.opened]
        assert found == [inspect(path) for path in paths]
        self.opened = opened
        return found

    def known(self, *paths: Path) -> bool:
        index = FileIndex(self.index_folder)
        return any(index.get(path) for path in paths)


def later(change: Callable[[], object], path: Path) -> None:
    """Modify a file once its file system's clock has advanced."""
    before = path.stat().st_ctime_ns
    change()
    while path.stat().st_ctime_ns == before:
        change()


def signed(text: str) -> bytes:
    """Return an index file with this content."""
    content = text.encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


@pytest.fixture(autouse=True)
def _old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new files count as old enough to be remembered."""
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**9))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    images = Images(tmp_path)
    monkeypatch.setattr(inspection, "read_bytes", images.read)
    return images


# Unmodified and modified files


def test_an_unmodified_file_is_not_opened_again(images: Images) -> None:
    paths = [images.draw(f"{i}.bmp", COLOURS[i], (i + 1, 7)) for i in range(4)]
    index = FileIndex(images.index_folder)
    first = inspect_all(paths, index)
    assert sorted(images.opened) == paths
    assert [found.size for found in first] == [(1, 7), (2, 7), (3, 7), (4, 7)]
    assert [found.digest for found in first] == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    images.opened.clear()
    (written,) = [file.stat().st_ino for file in images.index_folder.iterdir()]
    for again in (inspect_all(paths, index), images.look(*paths), images.look(*paths)):
        assert again == first
        assert [type(found.size) for found in again] == [tuple] * 4
    assert images.opened == []
    index.save()
    assert [file.stat().st_ino for file in images.index_folder.iterdir()] == [written]


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewrite": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "append": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "replace": lambda path: Path(shutil.copy(path, path.with_suffix(".new"))).replace(path),
    "touch": Path.touch,
}


def modify(path: Path, kind: str, keeps_times: bool) -> None:
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until its file system's clock has advanced
        CHANGES[kind](path)
        if keeps_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


steps = st.tuples(st.sampled_from([*CHANGES, "delete", "look", "same"]), st.integers(0, 2), st.booleans())
every_change = [(kind, 0, keeps) for keeps in (False, True) for change in CHANGES for kind in ("look", change, "look")]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=12))
@example(every_change)
def test_only_modified_files_are_inspected_after_any_changes(sequence: list[tuple[str, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        images = Images(Path(folder))
        patch.setattr(inspection, "read_bytes", images.read)
        paths = [images.draw(f"{i}.bmp") for i in range(3)]
        kept, modified = FileIndex(images.index_folder), set(paths)
        for kind, which, keeps_times in [*sequence, ("look", 0, False)]:
            path = paths[which]
            if kind == "look":
                images.opened.clear()
                images.look(*paths)
                assert set(images.opened) == modified | {path for path in paths if not path.exists()}
                modified.clear()
            elif kind == "same":
                assert inspect_all(paths, kept) == [inspect(path) for path in paths]
                modified.clear()
            elif kind == "delete":
                path.unlink(missing_ok=True)
            else:
                if not path.exists():
                    images.draw(path.name, "blue")
                modify(path, kind, keeps_times)
                modified.add(path)


@pytest.mark.parametrize("field", ["st_size", "st_ino", "st_mtime_ns", "st_ctime_ns"])
def test_an_entry_is_valid_until_size_inode_or_times_change(
    images: Images, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images.draw()
    images.look(path)
    found = path.stat()
    status = {name: getattr(found, name) for name in ("st_size", "st_ino", "st_mtime_ns", "st_ctime_ns")}
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(**status))
    assert images.known(path)
    status[field] -= 1
    assert not images.known(path)


def test_a_moved_file_and_a_redirected_link_are_inspected_again(images: Images) -> None:
    path, link = images.draw(), images.folder / "link.bmp"
    link.symlink_to(path)
    images.look(path, link)
    moved = path.rename(images.folder / "b.bmp")
    assert [found.reason for found in images.look(moved, path)] == [None, "no such file"]
    link.unlink()
    link.symlink_to(images.draw("c.bmp", "blue"))
    images.opened.clear()
    images.look(link)
    assert images.opened == [link]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_read_is_inspected_again(
    images: Images, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> bytes:
        content = decode.read_bytes(path)
        later(lambda: images.draw(colour="blue"), path)
        return decode.read_bytes(path) if when == "before" else content

    path = images.draw()
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_bytes", read)
        inspect_all([path], FileIndex(images.index_folder))
    images.look(path)
    assert images.opened == [path]


@pytest.mark.parametrize("copied", [False, True], ids=["written", "copied"])
def test_a_recently_modified_file_is_not_remembered(
    images: Images, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "SETTLED_NS", SETTLED_NS)
    path, index = images.draw(), FileIndex(images.index_folder)
    if copied:
        os.utime(path, (1e9, 1e9))
    found = path.stat()
    written = max(found.st_mtime_ns, found.st_ctime_ns)
    for waited, times_opened in [(0, 1), (SETTLED_NS, 2), (SETTLED_NS + 1, 3), (SETTLED_NS + 1, 3), (0, 3)]:
        monkeypatch.setattr("time.time_ns", lambda waited=waited: written + waited)
        inspect_all([path], index)
        assert len(images.opened) == times_opened
        assert images.known(path) == (times_opened == 3)


# What is remembered


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "not an image that can be read"), (b"", "empty file"), (None, "truncated")],
    ids=["text", "empty", "cut"],
)
def test_an_undecodable_file_is_remembered_with_its_reason(images: Images, content: bytes | None, reason: str) -> None:
    path = images.draw(size=(50, 50))
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    (first,), (again,) = images.look(path), images.look(path)
    assert images.opened == [path]
    assert again == first
    assert reason in str(again.reason)
    assert (again.size, again.digest) == (None, hashlib.sha256(path.read_bytes()).digest())
    later(images.draw, path)
    assert images.look(path)[0].reason is None


def test_a_missing_file_is_not_remembered(images: Images) -> None:
    path, folder = images.folder / "a.bmp", images.folder / "folder.bmp"
    folder.mkdir()
    for _ in range(2):
        reasons = [found.reason for found in images.look(path, folder)]
        assert reasons == ["no such file", "a folder, not an image"]
    assert len(images.opened) == 4
    assert images.look(images.draw())[0].size == (5, 4)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(), MemoryError()])
def test_a_read_error_is_not_remembered(images: Images, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(_: Path) -> bytes:
        raise error

    path = images.draw()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert inspect_all([path], FileIndex(images.index_folder))[0].reason
    assert images.look(path)[0].reason is None


def test_results_are_in_order_and_new_ones_join_known_ones(images: Images) -> None:
    paths = [images.draw(f"{i % 3}/{i:02d}.bmp", COLOURS[i % 4], (i + 1, 1)) for i in range(20)]
    paths[13].write_bytes(b"no image")
    known = [paths[i] for i in (3, 13, 0, 19, 8, 7)]
    images.look(*known)
    images.opened.clear()
    mixed = [*paths[10:], images.folder / "missing.bmp", *paths[10::-1], paths[12]]
    assert [found.path for found in images.look(*mixed)] == mixed
    assert set(images.opened) == set(mixed) - set(known)
    images.opened.clear()
    assert images.look(*reversed(paths)) == images.look(*paths)[::-1]
    assert images.look() == images.opened == []


def test_any_names_of_files_and_folders_work(images: Images) -> None:
    names = ["größer.bmp", "图.bmp", "e\u0301.bmp", "a\nb.bmp", "\U0001f600.bmp"]
    names += [os.fsdecode(name) for name in (b"\xff.bmp", b"\xf0\x9f\x98\x80\xff\xed.bmp")]
    paths = [images.draw(name, size=(1, i)) for i, name in enumerate(names, start=1)]
    paths += [images.draw(f"folders/{name}/a.bmp", size=(2, i)) for i, name in enumerate(names, start=1)]
    first = images.look(*paths)
    assert images.look(*paths) == first
    assert sorted(images.opened) == sorted(paths)
    assert len(list(images.index_folder.iterdir())) == 1 + len(names)


def test_two_indexes_saved_in_turn_keep_each_others_entries(images: Images) -> None:
    paths = [images.draw(f"{i}.bmp") for i in range(4)]
    one, two = FileIndex(images.index_folder), FileIndex(images.index_folder)
    for index in (one, two):
        index.get(paths[0])  # both have read their folder's index
    inspect_all(paths[:2], one)
    inspect_all(paths[2:], two)
    images.opened.clear()
    images.look(*paths)
    assert not images.opened


def test_without_a_folder_nothing_is_remembered(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.folder)
    path, index = images.draw(), FileIndex(None)
    for _ in range(2):
        inspect_all([path], index)
        inspect_all([path])
    assert images.opened == [path] * 4
    assert index.get(path) is None
    assert index.status(path) is None
    index.save()
    assert list(images.folder.iterdir()) == [path]


# An index that is damaged, foreign or cannot be written


@pytest.fixture
def paths(images: Images) -> list[Path]:
    """Return two images that the index contains."""
    paths = [images.draw("images/a.bmp"), images.folder / "images" / "b.bmp"]
    paths[1].write_bytes(b"no image")
    images.look(*paths)
    assert all(images.known(path) for path in paths)
    return paths


@pytest.fixture
def file(images: Images, paths: list[Path]) -> Path:
    """Return the file of the index."""
    (file,) = images.index_folder.iterdir()
    return file


def test_a_damaged_index_is_ignored(images: Images, paths: list[Path], file: Path) -> None:
    whole = file.read_bytes()
    damaged = [whole * 2, *(whole[:length] for length in range(len(whole)))]
    for mask in (0x01, 0x10, 0x80, 0xFF):
        damaged += [whole[:i] + bytes([byte ^ mask]) + whole[i + 1 :] for i, byte in enumerate(whole)]
    for content in damaged:
        file.write_bytes(content)
        assert not images.known(*paths), content


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "null", "1", '"a"', '{"files": {}}', "{", "\ud800", '{"a": NaN}', "folder", "version", "files"],
    ids=ascii,
)
def test_a_foreign_or_incomplete_index_is_ignored_and_rewritten(
    images: Images, paths: list[Path], file: Path, content: str, is_signed: bool
) -> None:
    own = json.loads(file.read_text().partition("\n")[2])
    if own.pop(content, None):
        content = json.dumps(own)
    file.write_bytes(signed(content) if is_signed else content.encode(errors="surrogatepass"))
    assert not images.known(*paths)
    images.look(*paths)
    assert all(images.known(path) for path in paths)


def test_an_index_of_another_folder_is_ignored(images: Images, paths: list[Path], file: Path) -> None:
    others = [images.draw(f"others/{path.name}", "blue") for path in paths]
    images.look(*others)
    (other,) = set(images.index_folder.iterdir()) - {file}
    file.replace(other)
    assert not images.known(*others)
    images.look(*others)


@pytest.mark.parametrize("part", sorted(decode.version()))
def test_an_index_of_another_decoder_is_rewritten(
    images: Images, paths: list[Path], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = decode.version()
    monkeypatch.setattr(decode, "version", lambda: {**version, part: "another"})
    images.opened.clear()
    for _ in range(2):
        images.look(*paths)
        assert sorted(images.opened) == paths


@pytest.mark.parametrize("below", [".", "deeper", "deeper/still"])
def test_an_unwritable_folder_is_no_error(images: Images, below: str) -> None:
    (images.folder / "file").write_text("no folder")
    images.index_folder = images.folder / "file" / below
    path = images.draw()
    for _ in range(2):
        images.look(path)
    assert images.opened == [path] * 2


@pytest.mark.parametrize("step", ["os.fdopen", "pathlib.Path.replace"])
def test_a_full_disk_is_no_error_and_leaves_nothing(images: Images, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = images.draw()
    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        images.look(path)
    assert list(images.index_folder.iterdir()) == []
    images.look(path)
    assert images.opened == [path] * 2


def test_an_index_file_that_is_a_folder_is_no_error(images: Images, paths: list[Path], file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").touch()
    images.look(*paths)
    assert not images.known(*paths)


def test_the_index_is_replaced_atomically(images: Images, paths: list[Path], file: Path) -> None:
    with file.open() as reader:
        later(lambda: images.draw("images/a.bmp", "blue"), paths[0])
        images.look(*paths)
        content = reader.read()
    assert content.encode() == signed(content.partition("\n")[2])
    assert list(images.index_folder.iterdir()) == [file]
