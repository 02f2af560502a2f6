"""A lock has one holder, whatever process that is, and goes when the holder does, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tl_research.system import locks
from tl_research.system.locks import is_held, try_lock

HOLDER = """
import sys
from pathlib import Path
from tl_research.system.locks import try_lock
lock = try_lock(Path(sys.argv[1]))
print(lock is not None, flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(path: Path, gets_it: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A process that has asked for the lock; it keeps it until it ends, at a line on its standard input."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{gets_it}\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that knows none."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_held_until_its_process_ends(path: Path) -> None:
    with holder(path) as process:
        assert is_held(path)
        assert try_lock(path) is None
        process.communicate("\n", timeout=30)
        assert not is_held(path)
        assert try_lock(path) is not None


def test_a_killed_process_releases_its_lock(path: Path) -> None:
    with holder(path) as process:
        process.kill()
        process.wait()
        assert not is_held(path)
        assert try_lock(path) is not None


def test_no_other_process_gets_a_held_lock(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    with holder(path, gets_it=False):
        pass
    assert is_held(path)


def test_surviving_children_do_not_keep_the_lock(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        try:
            assert try_lock(path) is not None
        finally:
            child.kill()


def test_two_locks_of_one_process_exclude_each_other(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    assert is_held(path)
    assert try_lock(path) is None
    lock.close()
    lock.close()  # twice is as good as once
    assert not is_held(path)


def test_an_unreferenced_lock_is_released(path: Path) -> None:
    try_lock(path)
    assert not is_held(path)
    assert try_lock(path) is not None


def test_closing_twice_closes_no_other_file(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    lock.close()
    with path.open("rb") as other:  # which gets the same descriptor
        lock.close()
        other.read()


def test_a_check_does_not_prevent_taking_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    looks = path.open("rb")
    fcntl.flock(looks, fcntl.LOCK_SH)
    pauses = []

    def pause(seconds: float) -> None:  # the look takes as long as two of them
        pauses.append(seconds)
        if len(pauses) == 2:
            looks.close()

    monkeypatch.setattr(locks.time, "sleep", pause)
    assert try_lock(path) is not None
    assert len(pauses) == 2


def test_concurrent_checks_do_not_count_as_holders(path: Path) -> None:
    path.touch()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_held(path)


def test_of_many_at_once_one_gets_the_lock(path: Path) -> None:
    taken: list[locks.Lock] = []
    start = threading.Barrier(8)

    def want() -> None:
        start.wait()
        lock = try_lock(path)
        if lock is not None:
            taken.append(lock)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


def test_locking_keeps_the_content_of_the_file(path: Path) -> None:
    path.write_text("content")
    lock = try_lock(path)
    assert lock is not None
    assert is_held(path)
    assert path.read_text() == "content"


def test_without_locks_everybody_gets_the_lock(path: Path, no_locks: None) -> None:
    first, second = try_lock(path), try_lock(path)
    assert first is not None
    assert second is not None
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        is_held(path)


def test_no_descriptor_is_left_open(path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = count()
    lock = try_lock(path)
    assert lock is not None
    for _ in range(3):
        assert try_lock(path) is None
        is_held(path)
    lock.close()
    assert count() == before


def test_missing_and_uncreatable_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        try_lock(tmp_path / "file" / ".lock")
    with pytest.raises(FileNotFoundError):
        is_held(tmp_path / ".lock")
