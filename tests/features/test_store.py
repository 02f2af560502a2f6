"""The feature store: rows come back bit by bit or not at all, whatever happens to files and processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging.handlers
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.conftest import ROOT
from tl_research.features import store as feature_store
from tl_research.features.store import ENTRY, FeatureStore, as_digests
from tl_research.features.store_admin import list_entries, prune_store

ABOUT = {"network": "a network", "image_size": 64}
OTHER = {"network": "another", "image_size": 64}
FLIPS = (0x01, 0x80, 0xFF)


def row_type(width: int = 3) -> np.dtype:
    return np.dtype(("<f4", (width,)))


def digests_of(numbers: Iterable[int]) -> np.ndarray:
    return as_digests([hashlib.sha256(str(number).encode()).digest() for number in numbers])


def rows_of(numbers: Iterable[int], width: int = 3) -> np.ndarray:
    """Return a row for each number; no two are equal."""
    return (np.array(list(numbers), "<f4").reshape(-1, 1) + np.arange(width, dtype="<f4") / 2).astype("<f4")


def put(store: FeatureStore, numbers: Iterable[int]) -> None:
    numbers = list(numbers)
    store.append(digests_of(numbers), rows_of(numbers, store.row.shape[0]))


def found_in(store: FeatureStore, numbers: Iterable[int]) -> list[int]:
    """Return the numbers that the store has, and check their rows."""
    numbers = list(numbers)
    out = np.full((len(numbers), *store.row.shape), np.nan, store.row.base)
    found = store.read(digests_of(numbers), out)
    assert found.shape == (len(numbers),)
    assert found.dtype == bool
    np.testing.assert_array_equal(out[found], rows_of(numbers, store.row.shape[0])[found])
    return [number for number, present in zip(numbers, found, strict=True) if present]


def opened(root: Path, width: int = 3) -> FeatureStore:
    return FeatureStore(root, ABOUT, row_type(width))


def add(store: FeatureStore, numbers: Iterable[int]) -> None:
    """Append rows, end the shard, and list it."""
    put(store, numbers)
    store.close()
    store.refresh()


def fill(
    root: Path, numbers: Iterable[int], width: int = 3, about: Mapping[str, Any] = ABOUT, used: float | None = None
) -> Path:
    """Write one shard, set the time of its last use, and return the path of its index."""
    before = set(root.glob("*/*.index"))
    add(FeatureStore(root, about, row_type(width)), numbers)
    (index,) = set(root.glob("*/*.index")) - before
    if used is not None:
        for path in (index, index.with_suffix(".rows")):
            os.utime(path, (used, used))
    return index


def flipped(path: Path, position: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for suffix in ("rows", "index") for path in root.glob(f"*/*.{suffix}"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return opened(tmp_path)


either_file = pytest.mark.parametrize("suffix", [".rows", ".index"])


# Writing and reading


@given(
    rows=arrays(st.sampled_from(["<f4", "<f2", "u1"]), array_shapes(max_dims=3, max_side=5)),
    order=st.sampled_from(["C", "F"]),
    step=st.integers(1, 2),
)
@example(np.array([[np.nan, np.inf, -0.0, 1e-42]], "<f4"), "C", 1)
def test_rows_come_back_bit_by_bit(rows: np.ndarray, order: Any, step: int) -> None:
    row, digests = np.dtype((rows.dtype, rows.shape[1:])), digests_of(range(len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), ABOUT, row)
        store.append(digests, rows.repeat(step, axis=0).copy(order)[::step])
        store.close()
        out = np.ones_like(rows)
        assert FeatureStore(Path(folder), ABOUT, row).read(digests, out).all()
    assert out.tobytes() == rows.tobytes()


def test_a_refresh_is_due_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e6
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reader = opened(tmp_path)
    fill(tmp_path, range(4))
    assert not reader.refresh_if_due()
    assert found_in(reader, range(4)) == []
    now += 3600
    assert reader.refresh_if_due()
    assert found_in(reader, range(4)) == [0, 1, 2, 3]
    assert not reader.refresh_if_due()


events = st.sampled_from(["append", "close", "reopen", "refresh", "read"])
steps = st.tuples(events, st.integers(0, 1), st.lists(st.integers(0, 30), max_size=9))


@given(st.lists(steps, max_size=25))
def test_the_store_behaves_like_a_dict(sequence: list[tuple[str, int, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_store, "LARGEST_SHARD", 60)
        appended: list[int] = []
        stores = [opened(Path(folder)) for _ in range(2)]
        seen: list[set[int]] = [set(), set()]  # the numbers at each store's last refresh
        for what, which, numbers in sequence:
            store = stores[which]
            if what == "append":
                put(store, numbers)
                appended += numbers
            elif what == "read":
                assert found_in(store, numbers) == [number for number in numbers if number in seen[which]]
                assert store.has(digests_of(numbers)).tolist() == [number in seen[which] for number in numbers]
                assert [digest in store for digest in digests_of(numbers)] == store.has(digests_of(numbers)).tolist()
            elif what == "refresh":
                store.refresh()
                seen[which] = set(appended)
            else:
                store.close()
                if what == "reopen":
                    stores[which], seen[which] = opened(Path(folder)), set(appended)
        for store in stores:
            add(store, [])
        assert found_in(stores[1], range(35)) == sorted(set(appended))
        entries = list_entries(Path(folder))
        assert sum(entry.num_rows for entry in entries) == len(appended)
        assert not any(entry.damaged() for entry in entries)


# The key


@pytest.mark.parametrize(
    ("about", "base", "shape"),
    [
        *((about, "<f4", (4,)) for about in (OTHER, {}, {**ABOUT, "more": None}, {**ABOUT, "image_size": "64"})),
        *((ABOUT, "<f4", shape) for shape in [(2,), (3,), (8,), (2, 2)]),
        *((ABOUT, *row) for row in [("<i4", (4,)), (">f4", (4,)), ("<f2", (8,))]),
    ],
)
@pytest.mark.parametrize("renamed", [False, True])
def test_rows_of_another_network_are_not_found(
    tmp_path: Path, about: dict[str, Any], base: str, shape: tuple[int, ...], renamed: bool
) -> None:
    index = fill(tmp_path, range(8), width=4)
    other = FeatureStore(tmp_path, about, np.dtype((base, shape)))
    assert other.folder != index.parent
    if renamed:
        index.parent.rename(other.folder)
        other.refresh()
        assert other.has(digests_of(range(3))).all()  # only `read` checks the rows
    assert not other.read(digests_of(range(8)), np.zeros((8, *shape), base)).any()


def test_files_have_the_documented_format(tmp_path: Path) -> None:
    note = {"note": {"weights": "/données/图/" + os.fsdecode(b"net-\xff.h5")}}
    store = FeatureStore(tmp_path, ABOUT, row_type(5), note)
    add(store, range(8))
    (shard,) = store.shards
    rows, digests = rows_of(range(8), 5), digests_of(range(8))
    np.testing.assert_array_equal(np.memmap(shard.index.with_suffix(".rows"), "<f4", "r").reshape(-1, 5), rows)
    entries = np.fromfile(shard.index, ENTRY)
    np.testing.assert_array_equal(entries["digest"], digests)
    salt = zlib.crc32(store.key.encode())
    pairs = zip(digests, rows, strict=True)
    assert entries["checksum"].tolist() == [zlib.crc32(digest.tobytes() + row.tobytes(), salt) for digest, row in pairs]
    about = json.loads((store.folder / "about.json").read_text())
    assert about == {"about": {**ABOUT, "format": 1, "row": ["<f4", [5]]}, **note}
    assert list_entries(tmp_path)[0].about == about


# Damage


copies = st.tuples(st.integers(0, 5), st.sampled_from([None, ".rows", ".index"]))  # a number, and the file to damage


@settings(max_examples=50)
@given(st.lists(st.lists(copies, min_size=1, max_size=6), max_size=4))
def test_the_undamaged_copy_of_a_row_is_read(shards: list[list[tuple[int, str | None]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        damaged: dict[Path, list[int]] = {}
        for shard in shards:
            index = fill(Path(folder), [number for number, _ in shard])
            for place, (_, suffix) in enumerate(shard):
                if suffix:
                    step = (row_type() if suffix == ".rows" else ENTRY).itemsize
                    flipped(index.with_suffix(suffix), place * step + step - 1)  # in the index: the checksum
                    damaged.setdefault(index.with_suffix(".rows"), []).append(place)
        located = [entry.damaged() for entry in list_entries(Path(folder))]
        assert {path: bad.tolist() for entry in located for path, bad in entry.items()} == damaged
        store = opened(Path(folder))
        assert found_in(store, range(6)) == sorted({number for shard in shards for number, bad in shard if not bad})
        add(store, range(6))
        assert found_in(store, range(6)) == list(range(6))


def test_each_shard_with_damaged_rows_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [fill(tmp_path, range(4)).with_suffix(".rows") for _ in range(5)]
    for path in paths:
        flipped(path, 2 * row_type().itemsize + 1)
    store = opened(tmp_path)
    for _ in range(2):
        assert found_in(store, range(4)) == [0, 1, 3]
    assert sorted(warnings_of(caplog)) == sorted(f"{path}: 1 damaged row(s), not used" for path in paths)


def test_the_newest_copy_of_a_row_is_read_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("20260101-000000-c", "20260101-000001-b", "20260101-000002-a"):
        index = fill(tmp_path, [0])
        flipped(index.with_suffix(".rows"), 0, 0 if name.endswith("a") else 1)
        for path in (index, index.with_suffix(".rows")):
            path.rename(path.with_name(name + path.suffix))
    assert found_in(opened(tmp_path), [0]) == [0]
    assert warnings_of(caplog) == []


@either_file
@pytest.mark.parametrize(("count", "width"), [(3, 2), (200, 50)])
def test_a_flipped_byte_invalidates_only_its_row(tmp_path: Path, suffix: str, count: int, width: int) -> None:
    path = fill(tmp_path, range(count), width=width).with_suffix(suffix)
    listed_before = opened(tmp_path, width)
    whole = path.read_bytes()
    flips = list(itertools.product(range(len(whole)), FLIPS))
    for position, mask in flips if count == 3 else random.Random(0).sample(flips, 150):
        flipped(path, position, mask)
        damaged = position // (len(whole) // count)
        others = [number for number in range(count) if number != damaged]
        assert found_in(opened(tmp_path, width), range(count)) == others, (position, mask)
        assert found_in(listed_before, range(count)) == (others if suffix == ".rows" else list(range(count)))
        ((place, bad),) = list_entries(tmp_path)[0].damaged().items()
        assert (place, bad.tolist()) == (path.with_suffix(".rows"), [damaged]), (position, mask)
        flipped(path, position, mask)


@either_file
def test_a_cut_file_keeps_the_rows_before_the_cut(tmp_path: Path, suffix: str) -> None:
    path = fill(tmp_path, range(4), width=2).with_suffix(suffix)
    whole = path.read_bytes()
    for length in range(len(whole), -1, -1):
        path.write_bytes(whole)
        listed_before = opened(tmp_path, 2)
        os.truncate(path, length)
        remaining = list(range(length // (len(whole) // 4)))
        assert found_in(opened(tmp_path, 2), range(4)) == remaining, length
        found_in(listed_before, range(4))
        listed_before.refresh()
        assert found_in(listed_before, range(4)) == remaining, length
        (entry,) = list_entries(tmp_path)
        assert (entry.num_rows, entry.damaged()) == (len(remaining), {})
    path.write_bytes(whole[: len(whole) // 3])
    fill(tmp_path, range(2, 8), width=2)
    assert found_in(opened(tmp_path, 2), range(8)) == [0, 2, 3, 4, 5, 6, 7]


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, replace_by_folder, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff{" * 999)],
    ids=["deleted", "a folder", "empty", "garbage"],
)
@pytest.mark.parametrize("what", ["rows", "index", "about"])
def test_a_lost_or_replaced_file_costs_at_most_its_rows(
    tmp_path: Path, harm: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(10, 14))
    index = fill(tmp_path, range(4))
    listed_before = opened(tmp_path)
    harm({"rows": index.with_suffix(".rows"), "index": index, "about": index.parent / "about.json"}[what])
    expected = [*range(4 if what == "about" else 0), 10, 11, 12, 13]
    fresh = opened(tmp_path)
    assert found_in(fresh, range(20)) == expected
    assert set(found_in(listed_before, range(20))) >= set(expected)
    listed_before.refresh()
    assert found_in(listed_before, range(20)) == expected
    add(fresh, range(2, 6))
    assert found_in(fresh, range(20)) == sorted({*expected, 2, 3, 4, 5})
    assert not any("goes on without" in message for message in warnings_of(caplog))


@settings(max_examples=50)
@given(rows=st.binary(max_size=300), index=st.binary(max_size=300))
def test_a_shard_of_random_bytes_has_no_rows(rows: bytes, index: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = fill(Path(folder), range(4))
        (place.parent / "20000101-000000-0.rows").write_bytes(rows)
        (place.parent / "20000101-000000-0.index").write_bytes(index)
        assert found_in(opened(Path(folder)), range(8)) == [0, 1, 2, 3]


# Several processes


def write_rows(root: str, *numbers: str) -> None:
    """Write rows once a line arrives on standard input, and report each write: a process's main function."""
    width, first, stop, step = map(int, numbers)
    store = opened(Path(root), width)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    for start in range(first, stop, step):
        end = min(start + step, stop)
        put(store, range(start, end))
        print(start, end, flush=True)  # noqa: T201
    store.close()


def command(function: str, *arguments: object) -> list[str]:
    """Return the command line of a process that calls a function of this module."""
    code = f"import sys; from tests.features.test_store import {function}; {function}(*sys.argv[1:])"
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def writer(root: Path, *numbers: int) -> subprocess.Popen[str]:
    """Start a process that writes rows after `begin`; without its pipes it ends."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command("write_rows", root, *numbers), cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def begin(*processes: subprocess.Popen[str]) -> None:
    """Wait until all processes are ready, then let them write."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_four_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        spans = [(0, 300, 7), (200, 500, 1), (0, 300, 64), (450, 700, 13)]
        processes = [stack.enter_context(writer(tmp_path, 16, *span)) for span in spans]
        begin(*processes)
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert found_in(opened(tmp_path, 16), range(800)) == list(range(700))
    (entry,) = list_entries(tmp_path)
    assert (len(entry.shards), entry.num_rows, entry.damaged()) == (4, 1150, {})
    assert entry.about["about"]["network"] == "a network"
    assert {path.suffix for path in entry.folder.iterdir()} == {".rows", ".index", ".json"}


@pytest.mark.parametrize(
    ("reports", "width", "step"),
    [
        *itertools.product([0, 1, 2, 17, 60], [1280], [32]),
        *(pytest.param(*moment, marks=pytest.mark.slow) for moment in itertools.product([0, 40], [3, 4096], [1, 32])),
    ],
)
def test_a_killed_writer_leaves_all_reported_rows(tmp_path: Path, reports: int, width: int, step: int) -> None:
    with writer(tmp_path, width, 0, 2000 * step, step) as process:
        begin(process)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(reports)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    reported = {number for line in lines if line.endswith("\n") for number in range(*map(int, line.split()))}
    assert len(reported) >= reports * step
    assert process.returncode == -signal.SIGKILL
    store = opened(tmp_path, width)
    found = set(found_in(store, range(max(reported, default=0) + 5 * step)))
    assert found >= reported
    assert len(found) <= len(reported) + step  # at most the one that was being written
    add(store, [10**6])
    assert found_in(store, [10**6]) == [10**6]
    assert list_entries(tmp_path)[0].damaged() == {}


# Disks that cannot be written


def one_warning(messages: list[str], root: Path, reason: int) -> None:
    assert messages == [f"features.store={root}: {os.strerror(reason)}; the run goes on without"]


@either_file
def test_a_shard_that_cannot_be_created_ends_writing_once(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(4))
    store = opened(tmp_path)
    really = Path.open

    def refused(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "xb" and path.suffix == suffix:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    put(store, range(4, 6))
    add(store, range(4, 6))
    one_warning(warnings_of(caplog), tmp_path, errno.EROFS)
    assert found_in(store, range(8)) == [0, 1, 2, 3]


def test_a_read_only_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(4))
    monkeypatch.setattr(os, "utime", Mock(side_effect=PermissionError(errno.EPERM, os.strerror(errno.EPERM))))
    assert found_in(opened(tmp_path), range(6)) == [0, 1, 2, 3]


def write_with_limits(folder: str, begun: str) -> None:
    """Write under limits of the file size, which a write may reach half way, as on a disk that fills up."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    memory = logging.handlers.MemoryHandler(capacity=1000)
    logging.getLogger("tl_research").addHandler(memory)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, width in itertools.product(range(0, 1000, 9), (1, 30, 5000)):
        memory.buffer.clear()
        root = Path(folder) / f"{limit}-{width}"
        store = opened(root, width)
        if begun == "begun":
            put(store, [100])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        reported: list[int] = []
        for start in range(0, 40, 2):
            put(store, range(start, start + 2))
            if not memory.buffer:
                reported += [start, start + 1]
        put(store, range(40, 42))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        put(store, range(42, 44))
        messages = [record.getMessage() for record in memory.buffer]
        print(json.dumps([str(root), width, reported, messages]))  # noqa: T201


@pytest.mark.parametrize("begun", ["begun", "new"])
def test_a_full_disk_costs_only_later_rows(tmp_path: Path, begun: str) -> None:
    process = command("write_with_limits", tmp_path, begun)
    result = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")  # the first failure closes the files, else a ResourceWarning
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert {len(reported) for *_, reported, _ in outcomes} > {0, 2, 4}
    for root, width, reported, messages in outcomes:
        one_warning(messages, root, errno.EFBIG)
        found = found_in(opened(Path(root), width), range(50))
        assert found in (reported, [*reported, len(reported)], [*reported, len(reported), len(reported) + 1])
    assert not list(tmp_path.glob("*/*/.about.*"))


@pytest.mark.parametrize("below", ["file", "file/deeper", "file/deeper/still", ""])
def test_a_file_in_place_of_a_folder_warns_once(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / below
    file = tmp_path / "file" if below else opened(root).folder
    file.write_text("no folder")
    store = opened(root)
    for _ in range(2):
        assert found_in(store, range(4)) == []
        put(store, range(4))
        store.refresh()
    one_warning(warnings_of(caplog), root, errno.ENOTDIR if below else errno.EEXIST)
    assert file.read_text() == "no folder"


# Listing


def test_entries_are_listed_most_recently_used_last(tmp_path: Path) -> None:
    fill(tmp_path, range(5), used=3e8)
    fill(tmp_path, range(5, 7), used=1e8)
    fill(tmp_path, range(4), width=9, about=OTHER, used=2e8)
    other, newest = list_entries(tmp_path)
    assert (newest.num_rows, other.num_rows) == (7, 4)
    assert (newest.last_used, other.last_used) == (3e8, 2e8)
    assert (newest.num_bytes, other.num_bytes) == (7 * (12 + ENTRY.itemsize), 4 * (36 + ENTRY.itemsize))
    assert newest.about["about"] == {**ABOUT, "format": 1, "row": ["<f4", [3]]}
    assert other.folder == FeatureStore(tmp_path, OTHER, row_type(9)).folder


def test_a_root_without_stores_has_no_entries(tmp_path: Path) -> None:
    assert (list_entries(tmp_path), prune_store(tmp_path, 0)) == ([], 0)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not ours")
    assert (list_entries(tmp_path), prune_store(tmp_path, 0)) == ([], 0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.json", "files", "notes.txt"]


TEXTS = [b"", b"garbage", b"\xff\xfe\x00", b"null", b"[]", b'"about"', b"{}", b'{"about": null}', b'{"about": []}']
SHAPES = [3, ["3"], [-1], [0], [2**40], [2**70]]
ROWS = [None, ["<f4"], *(["<f4", shape] for shape in SHAPES), *([t, [3]] for t in (",f4", "<a4", "no such type", "O"))]


@pytest.mark.parametrize("content", [None, *TEXTS, *(json.dumps({"about": {"row": row}}).encode() for row in ROWS)])
def test_listing_survives_a_damaged_about_file(tmp_path: Path, content: bytes | None) -> None:
    fill(tmp_path, range(4), about=OTHER, used=2e9)
    index = fill(tmp_path, range(4), used=1e9)
    about = index.parent / "about.json"
    about.unlink() if content is None else about.write_bytes(content)
    damaged, sound = list_entries(tmp_path)
    assert damaged.folder == index.parent
    assert isinstance(damaged.about, dict)
    assert (damaged.last_used, damaged.num_bytes) == (1e9, 4 * (12 + ENTRY.itemsize))
    assert (sound.num_rows, sound.damaged()) == (4, {})
    damaged.damaged()
    assert prune_store(tmp_path, sound.num_bytes) == sound.num_bytes
    assert [entry.folder for entry in list_entries(tmp_path)] == [sound.folder]


# Pruning


@given(
    shards=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([ABOUT, OTHER])), max_size=6),
    room=st.integers(0, 60).map(lambda half_rows: half_rows * (12 + ENTRY.itemsize) / 2),
    spared=st.integers(0, 6),
)
def test_pruning_keeps_used_and_latest_shards(
    shards: list[tuple[int, int, dict[str, Any]]], room: float, spared: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        used = {fill(root, range(n), about=about, used=1e8 * day): 1e8 * day for n, day, about in shards}
        before = size_of(root)
        freed = prune_store(root, room, unused_since=1e8 * spared)
        left = {index: time_ for index, time_ in used.items() if index.exists()}
        gone = [time_ for index, time_ in used.items() if not index.exists()]
        assert {path.with_suffix(".index") for path in root.glob("*/*.rows")} == set(left)
        assert size_of(root) == before - freed
        assert size_of(root) <= room or all(time_ > 1e8 * spared for time_ in left.values())
        assert all(time_ <= 1e8 * spared for time_ in gone)
        assert max(gone, default=0) <= min(left.values(), default=np.inf)
        if gone:  # and no more than had to
            last = max(n * (12 + ENTRY.itemsize) for n, day, _ in shards if 1e8 * day == max(gone))
            assert size_of(root) + last > room


@pytest.mark.parametrize(("age", "stays"), [(0, True), (3500, True), (3700, False), (10**6, False)])
def test_rows_without_index_are_removed_after_an_hour(tmp_path: Path, age: int, stays: bool) -> None:
    sound, index = fill(tmp_path, range(5)), fill(tmp_path, range(5), about=OTHER)
    index.unlink()  # as if its writer had not got that far
    orphans = [index.with_suffix(".rows"), sound.with_name("0.rows")]
    shutil.copy(*orphans)
    for path in orphans:
        os.utime(path, (time.time() - age, time.time() - age))
    assert prune_store(tmp_path, float("inf")) == (0 if stays else 2 * 60)
    assert [path.exists() for path in (*orphans, index.parent / "about.json", index.parent)] == [stays] * 4
    assert found_in(opened(tmp_path), range(5)) == [0, 1, 2, 3, 4]


def test_only_reading_marks_a_shard_as_used(tmp_path: Path) -> None:
    read, unread = fill(tmp_path, range(5), used=1e8), fill(tmp_path, range(5, 10), used=2e8)
    store = opened(tmp_path)
    store.has(digests_of(range(10)))
    assert [path.stat().st_mtime for path in (read, unread)] == [1e8, 2e8]
    found_in(store, [2, 77])
    assert read.stat().st_mtime > time.time() - 60
    assert unread.stat().st_mtime == 2e8
    prune_store(tmp_path, size_of(tmp_path) // 2)
    assert list(tmp_path.glob("*/*.index")) == [read]


def test_a_reader_survives_pruning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, range(5), used=1e8)
    store = opened(tmp_path)
    prune_store(tmp_path, 0)
    assert found_in(store, range(5)) == []
    store.refresh()
    assert not store.has(digests_of(range(5))).any()
    add(store, range(3))
    assert found_in(store, range(5)) == [0, 1, 2]
    assert warnings_of(caplog) == []


def test_a_writer_survives_pruning(tmp_path: Path, store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, range(3))
    prune_store(tmp_path, 0)
    add(store, range(3, 6))
    add(store, range(6, 9))
    assert found_in(store, range(9)) == [6, 7, 8]
    assert warnings_of(caplog) == []
