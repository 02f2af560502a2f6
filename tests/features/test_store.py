"""The feature store: rows come back bit by bit or not at all, whatever happens to files and processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tl_research.errors import InputError
from tl_research.features import store as feature_store
from tl_research.features import store_admin
from tl_research.features.store import ENTRY, FeatureStore, as_digests, checksum
from tl_research.features.store_admin import StoreEntry, list_entries, prune_store

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


def fill(
    root: Path, numbers: Iterable[int], width: int = 3, about: Mapping[str, Any] = ABOUT, used: float | None = None
) -> Path:
    """Write one shard, set the time of its last use, and return the path of its index."""
    before = set(root.glob("*/*.index"))
    store = FeatureStore(root, about, row_type(width))
    put(store, numbers)
    store.close()
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


# Writing and reading


def test_appended_rows_are_read_back_in_any_order(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT, row_type())
    put(store, range(10))
    put(store, [10])
    put(store, [])
    put(store, range(11, 40))
    store.close()
    put(store, range(40, 50))
    store.close()
    store.refresh()
    assert found_in(store, range(50)) == list(range(50))
    shuffled = np.random.default_rng(0).permutation(50).tolist()
    assert found_in(store, shuffled) == shuffled
    assert found_in(store, [7, 45, 7, 7, 99, 45]) == [7, 45, 7, 7, 45]
    assert found_in(store, []) == []


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("base", ["<f4", "<f2", "u1"])
def test_rows_of_any_shape_come_back(tmp_path: Path, shape: tuple[int, ...], base: str) -> None:
    row = np.dtype((base, shape))
    rows = np.random.default_rng(0).integers(0, 256, (20, *shape)).astype(base)
    store = FeatureStore(tmp_path, ABOUT, row)
    store.append(digests_of(range(20)), rows)
    store.close()
    out = np.zeros_like(rows)
    assert FeatureStore(tmp_path, ABOUT, row).read(digests_of(range(20)), out).all()
    np.testing.assert_array_equal(out, rows)


@pytest.mark.parametrize("special", [np.nan, np.inf, -0.0, 1e-42])
def test_rows_come_back_bit_by_bit(tmp_path: Path, special: float) -> None:
    rows = np.full((1, 3), special, "<f4")
    store = FeatureStore(tmp_path, ABOUT, row_type())
    store.append(digests_of([0]), rows)
    store.close()
    out = np.ones_like(rows)
    assert FeatureStore(tmp_path, ABOUT, row_type()).read(digests_of([0]), out).all()
    assert out.tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    "laid",
    [np.asfortranarray, lambda rows: np.repeat(rows, 2, axis=0)[::2], lambda rows: np.repeat(rows, 2, 1)[:, ::2]],
)
def test_rows_need_not_be_contiguous_in_memory(tmp_path: Path, laid: Any) -> None:
    store = FeatureStore(tmp_path, ABOUT, row_type())
    with contextlib.closing(store):
        store.append(digests_of(range(5)), laid(rows_of(range(5))))
    store.refresh()
    assert found_in(store, range(5)) == list(range(5))


def test_another_store_object_finds_rows_after_a_refresh(tmp_path: Path) -> None:
    before = FeatureStore(tmp_path, ABOUT, row_type())
    writer = FeatureStore(tmp_path, ABOUT, row_type())
    put(writer, range(4))
    after = FeatureStore(tmp_path, ABOUT, row_type())  # the writer has not closed yet
    assert found_in(after, range(6)) == [0, 1, 2, 3]
    assert found_in(before, range(6)) == []
    before.refresh()
    assert found_in(before, range(6)) == [0, 1, 2, 3]
    put(writer, [4])
    for reader in (before, after, writer):
        reader.refresh()
        assert found_in(reader, range(6)) == [0, 1, 2, 3, 4]
    writer.close()


def test_a_refresh_is_due_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reader = FeatureStore(tmp_path, ABOUT, row_type())
    fill(tmp_path, range(4))
    assert not reader.refresh_if_due()
    assert found_in(reader, range(4)) == []
    now += 3600
    assert reader.refresh_if_due()
    assert found_in(reader, range(4)) == [0, 1, 2, 3]
    assert not reader.refresh_if_due()


def test_unknown_digests_are_not_found(tmp_path: Path) -> None:
    fill(tmp_path, range(0, 100, 2))
    store = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(store, range(100)) == list(range(0, 100, 2))
    assert found_in(store, range(1, 100, 2)) == []
    assert store.has(digests_of(range(100))).tolist() == [True, False] * 50
    assert digests_of([2])[0] in store
    assert digests_of([3])[0] not in store


def test_smallest_and_largest_digest_are_found_exactly(tmp_path: Path) -> None:
    ends = as_digests([b"\0" * 32, b"\xff" * 32])
    store = FeatureStore(tmp_path, ABOUT, row_type())
    assert not store.has(ends).any()
    store.append(ends, rows_of([0, 1]))
    store.close()
    store.refresh()
    near = as_digests([b"\0" * 31 + b"\1", b"\xff" * 31 + b"\xfe", b"\1" * 32])
    out = np.zeros((5, 3), "<f4")
    assert store.read(np.concatenate([ends, near]), out).tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(out[:2], rows_of([0, 1]))


@pytest.mark.parametrize("together", [True, False])
def test_digests_with_equal_prefixes_are_distinguished(tmp_path: Path, together: bool) -> None:
    alike = as_digests([b"12345678" * k + bytes([k]) * (32 - 8 * k) for k in (1, 2, 3)])
    store = FeatureStore(tmp_path, ABOUT, row_type())
    for number in range(2):
        store.append(alike[number : number + 1], rows_of([number]))
        if not together:
            store.close()
    store.close()
    store.refresh()
    out = np.zeros((3, 3), "<f4")
    assert store.read(alike, out).tolist() == [True, True, False]
    np.testing.assert_array_equal(out[:2], rows_of([0, 1]))


def test_a_shard_ends_at_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "LARGEST_SHARD", 5 * row_type().itemsize)
    store = FeatureStore(tmp_path, ABOUT, row_type())
    for number in range(13):
        put(store, [number])
    store.close()
    assert sorted(len(shard.entries) for shard in list_entries(tmp_path)[0].shards) == [3, 5, 5]
    store.refresh()
    assert found_in(store, range(20)) == list(range(13))


class Copy:
    """A `FeatureStore` and the numbers that it must find: those of its last refresh."""

    def __init__(self, root: Path, there: set[int]):
        self.root = root
        self.open(there)

    def open(self, there: set[int]) -> None:
        self.store = FeatureStore(self.root, ABOUT, row_type())
        self.seen = set(there)


numbers_ = st.lists(st.integers(0, 30), max_size=6)
steps = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 1), numbers_),
    st.tuples(st.sampled_from(["close", "reopen", "refresh"]), st.integers(0, 1), st.just([])),
    st.tuples(st.just("read"), st.integers(0, 1), numbers_),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(steps, max_size=25))
def test_the_store_behaves_like_a_dict(sequence: list[tuple[str, int, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_store, "LARGEST_SHARD", 60)
        there: set[int] = set()
        copies = [Copy(Path(folder), there) for _ in range(2)]
        for what, which, numbers in sequence:
            copy = copies[which]
            if what == "append":
                put(copy.store, numbers)
                there.update(numbers)
            elif what == "read":
                assert found_in(copy.store, numbers) == [number for number in numbers if number in copy.seen]
                assert copy.store.has(digests_of(numbers)).tolist() == [number in copy.seen for number in numbers]
            elif what == "refresh":
                copy.store.refresh()
                copy.seen = set(there)
            else:
                copy.store.close()
                if what == "reopen":
                    copy.open(there)
        for copy in copies:
            copy.store.close()
            copy.store.refresh()
            assert found_in(copy.store, range(35)) == sorted(there)
        assert not any(entry.damaged() for entry in list_entries(Path(folder)))


# The key


@pytest.mark.parametrize(
    ("about", "width", "base"),
    [
        (OTHER, 4, "<f4"),
        ({**ABOUT, "more": None}, 4, "<f4"),
        ({"network": "a network", "image_size": "64"}, 4, "<f4"),
        ({}, 4, "<f4"),
        (ABOUT, 3, "<f4"),
        (ABOUT, 2, "<f4"),
        (ABOUT, 8, "<f4"),
        (ABOUT, 8, "<f2"),
        (ABOUT, 4, "<i4"),
        (ABOUT, 4, ">f4"),
    ],
)
@pytest.mark.parametrize("renamed", [False, True])
def test_rows_of_another_network_are_not_found(
    tmp_path: Path, about: dict[str, Any], width: int, base: str, renamed: bool
) -> None:
    index = fill(tmp_path, range(8), width=4)
    other = FeatureStore(tmp_path, about, np.dtype((base, (width,))))
    assert other.folder != index.parent
    if renamed:
        index.parent.rename(other.folder)
        other.refresh()
        assert other.has(digests_of(range(3))).all()  # by the look of them
    out = np.zeros((8, width), base)
    assert not other.read(digests_of(range(8)), out).any()


def test_the_row_shape_is_part_of_the_key(tmp_path: Path) -> None:
    index = fill(tmp_path, range(8), width=4)
    square = FeatureStore(tmp_path, ABOUT, np.dtype(("<f4", (2, 2))))
    shutil.copytree(index.parent, square.folder)
    square.refresh()
    assert not square.read(digests_of(range(8)), np.zeros((8, 2, 2), "<f4")).any()


def test_key_ignores_order_notes_and_location(tmp_path: Path) -> None:
    fill(tmp_path / "here", range(8))
    (tmp_path / "here").rename(tmp_path / "there")
    backwards = dict(reversed(ABOUT.items()))
    assert found_in(FeatureStore(tmp_path / "there", backwards, row_type(), {"note": 1}), range(8)) == list(range(8))


def test_a_checksum_covers_digest_row_and_store() -> None:
    digest, row = digests_of([0])[0], rows_of([0])[0]
    expected = checksum(digest, row, 1)
    assert expected == zlib.crc32(digest.tobytes() + row.tobytes(), 1)
    assert len({expected, checksum(digest, row, 2), checksum(digest, row + 1, 1), checksum(~digest, row, 1)}) == 4


def test_files_have_the_documented_format(tmp_path: Path) -> None:
    index = fill(tmp_path, range(8), width=5)
    np.testing.assert_array_equal(
        np.memmap(index.with_suffix(".rows"), "<f4", "r").reshape(-1, 5), rows_of(range(8), 5)
    )
    about = json.loads((index.parent / "about.json").read_text())
    assert about["about"]["network"] == "a network"


def test_notes_may_have_any_letters(tmp_path: Path) -> None:
    note = {"note": {"weights": "/données/图/" + os.fsdecode(b"net-\xff.h5")}}
    store = FeatureStore(tmp_path, ABOUT, row_type(), note)
    put(store, range(3))
    store.close()
    store.refresh()
    assert found_in(store, range(3)) == [0, 1, 2]
    assert list_entries(tmp_path)[0].about["note"]["weights"] == note["note"]["weights"]


# Damage


@pytest.mark.parametrize("bad", ["first", "second"])
@pytest.mark.parametrize("suffix", [".rows", ".index"])
@pytest.mark.parametrize("apart", [True, False])
def test_the_undamaged_copy_of_a_row_is_read(
    tmp_path: Path, bad: str, suffix: str, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    step = (row_type() if suffix == ".rows" else ENTRY).itemsize
    if apart:
        copies = [fill(tmp_path, range(4)), fill(tmp_path, range(3, -1, -1))]
        damaged, places = copies[bad == "second"], range(4)
    else:
        damaged = fill(tmp_path, [0, 1, 2, 3, 3, 2, 1, 0])
        places = range(4) if bad == "first" else range(4, 8)
    for place in places:
        flipped(damaged.with_suffix(suffix), place * step + step - 1)  # in the index: the checksum
    store = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(store, [3, 0, 2, 1, 9]) == [3, 0, 2, 1]
    assert all(str(damaged.with_suffix(".rows")) in message for message in warnings_of(caplog))


@pytest.mark.parametrize("copies", [2, 5])
def test_a_row_with_only_damaged_copies_is_absent(
    tmp_path: Path, copies: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(copies):
        flipped(fill(tmp_path, range(4)).with_suffix(".rows"), 2 * row_type().itemsize + 1)
    store = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(store, range(4)) == [0, 1, 3]
    assert len(warnings_of(caplog)) == copies
    assert all("1 damaged row(s), not used" in message for message in warnings_of(caplog))
    put(store, [2])
    store.close()
    store.refresh()
    assert found_in(store, range(4)) == [0, 1, 2, 3]


def test_the_newest_copy_of_a_row_is_read_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("20260101-000000-c", "20260101-000001-b", "20260101-000002-a"):
        index = fill(tmp_path, [0])
        flipped(index.with_suffix(".rows"), 0, 0 if name.endswith("a") else 1)
        for path in (index, index.with_suffix(".rows")):
            path.rename(path.with_name(name + path.suffix))
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), [0]) == [0]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_a_flipped_byte_invalidates_only_its_row(tmp_path: Path, suffix: str) -> None:
    path = fill(tmp_path, range(3), width=2).with_suffix(suffix)
    step = 8 if suffix == ".rows" else ENTRY.itemsize
    whole = path.read_bytes()
    assert len(whole) == 3 * step
    for position in range(len(whole)):
        for mask in FLIPS:
            flipped(path, position, mask)
            others = [number for number in range(3) if number != position // step]
            assert found_in(FeatureStore(tmp_path, ABOUT, row_type(2)), range(3)) == others, (position, mask)
            ((place, bad),) = list_entries(tmp_path)[0].damaged().items()
            assert place == path.with_suffix(".rows")
            assert bad.tolist() == [position // step], (position, mask)
            flipped(path, position, mask)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_a_flipped_byte_in_a_large_shard_invalidates_one_row(tmp_path: Path, suffix: str) -> None:
    path = fill(tmp_path, range(200), width=50).with_suffix(suffix)
    step = 200 if suffix == ".rows" else ENTRY.itemsize
    rng = random.Random(0)
    for _ in range(150):
        position, mask = rng.randrange(200 * step), rng.randrange(1, 256)
        flipped(path, position, mask)
        others = [number for number in range(200) if number != position // step]
        assert found_in(FeatureStore(tmp_path, ABOUT, row_type(50)), range(200)) == others, (position, mask)
        flipped(path, position, mask)


def test_a_byte_flipped_after_listing_invalidates_its_row(tmp_path: Path) -> None:
    index = fill(tmp_path, range(5))
    store = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(store, range(5)) == [0, 1, 2, 3, 4]
    flipped(index.with_suffix(".rows"), 3 * row_type().itemsize)
    assert found_in(store, range(5)) == [0, 1, 2, 4]


def test_swapped_rows_are_not_found(tmp_path: Path) -> None:
    path = fill(tmp_path, range(4)).with_suffix(".rows")
    rows_of([1, 0, 2, 3]).tofile(path)
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), range(4)) == [2, 3]


@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_a_file_cut_at_any_length_keeps_the_rows_before_the_cut(tmp_path: Path, suffix: str) -> None:
    path = fill(tmp_path, range(4), width=2).with_suffix(suffix)
    step = 8 if suffix == ".rows" else ENTRY.itemsize
    whole = path.read_bytes()
    for length in range(len(whole), -1, -1):
        path.write_bytes(whole)
        listed_before = FeatureStore(tmp_path, ABOUT, row_type(2))
        os.truncate(path, length)
        remaining = list(range(length // step))
        assert found_in(FeatureStore(tmp_path, ABOUT, row_type(2)), range(4)) == remaining, length
        found_in(listed_before, range(4))
        listed_before.refresh()
        assert found_in(listed_before, range(4)) == remaining, length
        (entry,) = list_entries(tmp_path)
        assert (entry.num_rows, entry.damaged()) == (len(remaining), {})


def test_a_store_with_a_cut_shard_can_be_written(tmp_path: Path) -> None:
    index = fill(tmp_path, range(4))
    os.truncate(index, 50)
    os.truncate(index.with_suffix(".rows"), 25)
    fill(tmp_path, range(2, 8))
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), range(8)) == [0, 2, 3, 4, 5, 6, 7]


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


harms = pytest.mark.parametrize(
    "harm",
    [Path.unlink, replace_by_folder, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff{" * 999)],
    ids=["deleted", "a folder", "empty", "garbage"],
)


@harms
@pytest.mark.parametrize("what", ["rows", "index", "about"])
def test_a_lost_or_replaced_file_costs_at_most_its_rows(
    tmp_path: Path, harm: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound = fill(tmp_path, range(10, 14))
    index = fill(tmp_path, range(4))
    listed_before = FeatureStore(tmp_path, ABOUT, row_type())
    harm({"rows": index.with_suffix(".rows"), "index": index, "about": index.parent / "about.json"}[what])
    expected = [10, 11, 12, 13] if what != "about" else [0, 1, 2, 3, 10, 11, 12, 13]
    fresh = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(fresh, range(20)) == expected
    assert set(found_in(listed_before, range(20))) >= set(expected)
    listed_before.refresh()
    assert found_in(listed_before, range(20)) == expected
    put(fresh, range(2, 6))
    fresh.close()
    fresh.refresh()
    assert found_in(fresh, range(20)) == sorted({*expected, 2, 3, 4, 5})
    assert not any("goes on without" in message for message in warnings_of(caplog))
    assert sound.exists()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["deleted", "empty"])
@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_a_store_with_a_lost_file_is_listed_and_pruned(tmp_path: Path, harm: Any, suffix: str) -> None:
    fill(tmp_path, range(10, 14), used=1e9)
    harm(fill(tmp_path, range(4), used=2e9).with_suffix(suffix))
    (entry,) = list_entries(tmp_path)
    assert (entry.num_rows, entry.damaged(), entry.num_bytes) == (4, {}, pytest.approx(size_of(tmp_path), abs=48))
    prune_store(tmp_path, 0)
    assert not list(tmp_path.glob("*/*.index"))


@settings(deadline=None, max_examples=50)
@given(rows=st.binary(max_size=300), index=st.binary(max_size=300))
def test_a_shard_of_random_bytes_has_no_rows(rows: bytes, index: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = fill(Path(folder), range(4))
        (place.parent / "20000101-000000-0.rows").write_bytes(rows)
        (place.parent / "20000101-000000-0.index").write_bytes(index)
        assert found_in(FeatureStore(Path(folder), ABOUT, row_type()), range(8)) == [0, 1, 2, 3]


# Several processes


def test_two_alternating_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [FeatureStore(tmp_path, ABOUT, row_type()) for _ in range(2)]
    for number in range(20):
        put(writers[number % 2], [number, number + 1])
        if number == 9:
            writers[0].close()
    for writer in writers:
        writer.close()
        writer.refresh()
        assert found_in(writer, range(30)) == list(range(21))
    (entry,) = list_entries(tmp_path)
    assert (len(entry.shards), entry.num_rows, entry.damaged()) == (3, 40, {})


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from tl_research.features.store import FeatureStore, as_digests

root, width, first, stop, step = Path(sys.argv[1]), *map(int, sys.argv[2:])
store = FeatureStore(root, {"network": "a network", "image_size": 64}, np.dtype(("<f4", (width,))))
print("ready", flush=True)
sys.stdin.readline()
for start in range(first, stop, step):
    numbers = range(start, min(start + step, stop))
    digests = as_digests([hashlib.sha256(str(number).encode()).digest() for number in numbers])
    rows = np.array(numbers, "<f4").reshape(-1, 1) + np.arange(width, dtype="<f4") / 2
    store.append(digests, rows)
    print(numbers.start, numbers.stop, flush=True)
store.close()
"""


@contextlib.contextmanager
def writer(root: Path, *numbers: int) -> Iterator[subprocess.Popen[str]]:
    """Start a process that waits for a line on its standard input before it writes."""
    command = [sys.executable, "-c", WRITER, str(root), *map(str, numbers)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_four_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        spans = [(0, 300, 7), (200, 500, 1), (0, 300, 64), (450, 700, 13)]
        processes = [stack.enter_context(writer(tmp_path, 16, *span)) for span in spans]
        for process in processes:
            started(process)
        for process in processes:
            go(process)
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type(16)), range(800)) == list(range(700))
    (entry,) = list_entries(tmp_path)
    assert (len(entry.shards), entry.num_rows, entry.damaged()) == (4, 1150, {})
    assert entry.about["about"]["network"] == "a network"
    assert {path.suffix for path in entry.folder.iterdir()} == {".rows", ".index", ".json"}


def _killed_after(root: Path, reports: int, width: int, step: int) -> None:
    with writer(root, width, 0, 2000 * step, step) as process:
        started(process)
        go(process)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(reports)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    reported = {number for line in lines if line.endswith("\n") for number in range(*map(int, line.split()))}
    assert len(reported) >= reports * step
    assert process.returncode == -signal.SIGKILL
    store = FeatureStore(root, ABOUT, row_type(width))
    found = set(found_in(store, range(max(reported, default=0) + 5 * step)))
    assert found >= reported
    assert len(found) <= len(reported) + step  # at most the one that was being written
    put(store, [10**6])
    store.close()
    store.refresh()
    assert found_in(store, [10**6]) == [10**6]
    assert list_entries(root)[0].damaged() == {}


@pytest.mark.parametrize("reports", [0, 1, 2, 17, 60])
def test_a_killed_writer_leaves_all_reported_rows(tmp_path: Path, reports: int) -> None:
    _killed_after(tmp_path, reports, width=1280, step=32)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_writer_killed_at_any_moment_leaves_all_reported_rows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    _killed_after(tmp_path, rng.randrange(80), width=rng.choice([3, 64, 1280, 4096]), step=rng.choice([1, 5, 32]))


# Disks that cannot be written


class Disk:
    """A disk on which a file can be written until `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.full = False
        self.files: list[io.BufferedWriter] = []
        really = Path.open
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode != "xb":
                return really(path, mode, *arguments, **options)
            if disk.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.files.append(io.BufferedWriter(Raw(path, "xb")))
            return self.files[-1]

        monkeypatch.setattr(Path, "open", opened)


def one_warning(caplog: pytest.LogCaptureFixture, root: Path, reason: int) -> None:
    (message,) = warnings_of(caplog)
    assert message == f"features.store={root}: {os.strerror(reason)}; the run goes on without"


@pytest.mark.parametrize("width", [3, 5000], ids=["buffered", "larger than the buffer"])
@pytest.mark.parametrize("later_free", [False, True])
def test_a_full_disk_ends_writing_with_one_warning(
    tmp_path: Path, width: int, later_free: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(monkeypatch)
    store = FeatureStore(tmp_path, ABOUT, row_type(width))
    put(store, range(4))
    disk.full = True
    put(store, range(4, 6))
    assert all(file.closed for file in disk.files)
    disk.full = not later_free
    put(store, range(6, 8))
    store.close()
    put(store, range(8, 10))
    store.close()
    one_warning(caplog, tmp_path, errno.ENOSPC)
    for reader in (store, FeatureStore(tmp_path, ABOUT, row_type(width))):
        reader.refresh()
        assert found_in(reader, range(12)) == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".rows", ".index", ""])
def test_a_shard_that_cannot_be_created_ends_writing_once(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(4))
    store = FeatureStore(tmp_path, ABOUT, row_type())
    really = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "xb" and path.suffix.endswith(suffix):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        put(store, range(4, 6))
        put(store, range(4, 6))
        store.close()
    one_warning(caplog, tmp_path, errno.EROFS)
    store.refresh()
    assert found_in(store, range(8)) == [0, 1, 2, 3]


def test_a_read_only_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    fill(tmp_path, range(4))
    monkeypatch.setattr(os, "utime", refused)
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), range(6)) == [0, 1, 2, 3]


# Writes under a limit of the file size, which a write may reach half way, as on a disk that fills up.
LIMITED = """
import hashlib, json, logging, resource, signal, sys
from pathlib import Path
import numpy as np
from tl_research.features.store import FeatureStore, as_digests

class Heard(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())

def put(store, numbers, width):
    digests = as_digests([hashlib.sha256(str(number).encode()).digest() for number in numbers])
    store.append(digests, np.array(numbers, "<f4").reshape(-1, 1) + np.arange(width, dtype="<f4") / 2)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.getLogger("tl_research").addHandler(Heard())
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
about = {"network": "a network", "image_size": 64}
for limit in range(0, 1000, 9):
    for width in (1, 30):
        heard, root = [], Path(sys.argv[1]) / f"{limit}-{width}"
        store = FeatureStore(root, about, np.dtype(("<f4", (width,))))
        if sys.argv[2] == "begun":
            put(store, range(100, 101), width)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        reported = []
        for start in range(0, 40, 2):
            put(store, range(start, start + 2), width)
            if not heard:
                reported += [start, start + 1]
        store.close()
        put(store, range(40, 42), width)
        store.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(json.dumps([str(root), width, reported, heard]))
"""


@pytest.mark.parametrize("begun", ["begun", "new"])
def test_a_partial_write_costs_only_later_rows(tmp_path: Path, begun: str) -> None:
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path), begun]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert {len(reported) for *_, reported, _ in outcomes} > {0, 2, 4}
    for root, width, reported, heard in outcomes:
        (warning,) = heard
        assert warning == f"features.store={root}: {os.strerror(errno.EFBIG)}; the run goes on without"
        found = found_in(FeatureStore(Path(root), ABOUT, row_type(width)), range(50))
        assert reported == found[: len(reported)]
        assert len(found) <= len(reported) + 2
    assert not list(tmp_path.glob("*/*/.about.*"))


@pytest.mark.parametrize("below", [".", "deeper", "deeper/still"])
def test_a_store_below_a_file_finds_nothing_and_warns_once(
    tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    root = tmp_path / "file" / below
    store = FeatureStore(root, ABOUT, row_type())
    for _ in range(2):
        assert found_in(store, range(4)) == []
        put(store, range(4))
        store.refresh()
    store.close()
    one_warning(caplog, root, errno.ENOTDIR)
    with pytest.raises(InputError):
        list_entries(root)


def test_a_file_in_place_of_the_store_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path, ABOUT, row_type())
    store.folder.write_text("no folder")
    for _ in range(2):
        store.refresh()
        assert found_in(store, range(4)) == []
        put(store, range(4))
    store.close()
    one_warning(caplog, tmp_path, errno.EEXIST)
    assert list_entries(tmp_path) == []
    assert prune_store(tmp_path, 0) == 0
    assert store.folder.read_text() == "no folder"


# Listing


def test_entries_are_listed_most_recently_used_last(tmp_path: Path) -> None:
    fill(tmp_path, range(5), used=3e8)
    fill(tmp_path, range(5, 7), used=1e8)
    fill(tmp_path, range(4), width=9, about=OTHER, used=2e8)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not ours")
    other, newest = list_entries(tmp_path)
    assert (newest.num_rows, other.num_rows) == (7, 4)
    assert (newest.last_used, other.last_used) == (3e8, 2e8)
    assert (newest.num_bytes, other.num_bytes) == (7 * (12 + ENTRY.itemsize), 4 * (36 + ENTRY.itemsize))
    assert newest.num_bytes + other.num_bytes == size_of(tmp_path)
    assert newest.about["about"] == {**ABOUT, "format": 1, "row": ["<f4", [3]]}
    assert other.folder == FeatureStore(tmp_path, OTHER, row_type(9)).folder


def test_an_empty_root_has_no_entries(tmp_path: Path) -> None:
    assert list_entries(tmp_path) == []
    assert prune_store(tmp_path, 0) == 0


@pytest.mark.parametrize("function", [list_entries, lambda root: prune_store(root, 0)], ids=["entries", "prune"])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, function: Any) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match="no such folder") as caught:
            function(place)
        assert f"features.store={place}" in str(caught.value)


def described(row: object) -> bytes:
    return json.dumps({"about": {"row": row}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"about"',
        b"{}",
        b'{"about": null}',
        b'{"about": []}',
        described(None),
        described(["<f4"]),
        described(["<f4", 3]),
        described(["<f4", ["3"]]),
        described(["<f4", [-1]]),
        described(["<f4", [0]]),
        described([",f4", [3]]),
        described(["<a4", [3]]),
        described(["<f4", [2**40]]),
        described(["<f4", [2**70]]),
        described(["no such type", [3]]),
        described(["O", [3]]),
    ],
    ids=lambda content: repr(content)[:60],
)
def test_listing_survives_a_damaged_about_file(tmp_path: Path, content: bytes | None) -> None:
    fill(tmp_path, range(4), about=OTHER, used=2e9)
    index = fill(tmp_path, range(4), used=1e9)
    about = index.parent / "about.json"
    about.unlink() if content is None else about.write_bytes(content)
    damaged, sound = list_entries(tmp_path)
    assert damaged.folder == index.parent
    assert isinstance(damaged.about, dict)
    assert (damaged.last_used, damaged.num_bytes) == (1e9, 4 * (12 + ENTRY.itemsize))
    assert sound.num_rows == 4
    damaged.damaged()
    freed = damaged.num_bytes
    assert prune_store(tmp_path, freed) == freed
    assert [entry.folder for entry in list_entries(tmp_path)] == [sound.folder]


def test_listing_survives_any_flipped_byte_in_about(tmp_path: Path) -> None:
    index = fill(tmp_path, range(4))
    about = index.parent / "about.json"
    for position in range(about.stat().st_size):
        for mask in FLIPS:
            flipped(about, position, mask)
            (entry,) = list_entries(tmp_path)
            entry.damaged()
            assert entry.num_bytes == size_of(tmp_path)
            flipped(about, position, mask)
    assert list_entries(tmp_path)[0].damaged() == {}


def test_damaged_rows_are_located_exactly(tmp_path: Path) -> None:
    sound = fill(tmp_path, range(20))
    first, second = fill(tmp_path, range(20)), fill(tmp_path, range(20, 40))
    other = fill(tmp_path, range(20), width=7, about=OTHER)
    assert [entry.damaged() for entry in list_entries(tmp_path)] == [{}, {}]
    for place in (0, 7, 19):
        flipped(first.with_suffix(".rows"), place * 12 + 5)
    flipped(first, 8 * ENTRY.itemsize)
    flipped(second, 11 * ENTRY.itemsize + 35)
    found = {path: bad.tolist() for entry in list_entries(tmp_path) for path, bad in entry.damaged().items()}
    assert found == {first.with_suffix(".rows"): [0, 7, 8, 19], second.with_suffix(".rows"): [11]}
    flipped(other.with_suffix(".rows"), 6 * 28)
    found |= {path: bad.tolist() for entry in list_entries(tmp_path) for path, bad in entry.damaged().items()}
    assert found[other.with_suffix(".rows")] == [6]
    assert sound.with_suffix(".rows") not in found


def test_listing_survives_a_shard_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(4))
    going = fill(tmp_path, range(4))
    really = feature_store.Shard.read

    def read(index: Path, row: np.dtype) -> Any:
        if index == going:
            index.unlink(missing_ok=True)
        return really(index, row)

    monkeypatch.setattr(feature_store.Shard, "read", read)
    assert [entry.num_rows for entry in list_entries(tmp_path)] == [4]


# Pruning


@pytest.mark.parametrize(("room", "remaining"), [(4, 3), (3, 3), (2.99, 2), (2, 2), (1.5, 1), (1, 1), (0.5, 0), (0, 0)])
def test_pruning_removes_least_recently_used_shards(tmp_path: Path, room: float, remaining: int) -> None:
    middle = fill(tmp_path, range(5), used=2e8)
    newest = fill(tmp_path, range(5), used=3e8, about=OTHER)
    oldest = fill(tmp_path, range(5, 10), used=1e8)
    before, size = size_of(tmp_path), 5 * (12 + ENTRY.itemsize)
    freed = prune_store(tmp_path, room * size)
    assert set(tmp_path.glob("*/*.index")) == set([newest, middle, oldest][:remaining])
    assert {path.with_suffix(".index") for path in tmp_path.glob("*/*.rows")} == set(
        [newest, middle, oldest][:remaining]
    )
    assert size_of(tmp_path) == before - freed == remaining * size <= room * size
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), range(10)) == list(range([0, 0, 5, 10][remaining]))


@settings(deadline=None, max_examples=50)
@given(
    shards=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([ABOUT, OTHER])), max_size=6),
    room=st.integers(0, 1500),
    spared=st.integers(0, 6),
)
def test_pruning_keeps_used_and_latest_shards(
    shards: list[tuple[int, int, dict[str, Any]]], room: int, spared: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        used = {fill(root, range(n), about=about, used=1e8 * day): 1e8 * day for n, day, about in shards}
        before = size_of(root)
        freed = prune_store(root, room, unused_since=1e8 * spared)
        left = {index: time_ for index, time_ in used.items() if index.exists()}
        gone = [time_ for index, time_ in used.items() if not index.exists()]
        assert size_of(root) == before - freed
        assert size_of(root) <= room or all(time_ > 1e8 * spared for time_ in left.values())
        assert all(time_ <= 1e8 * spared for time_ in gone)
        assert max(gone, default=0) <= min(left.values(), default=np.inf)
        if gone:  # and no more than had to
            last = max(n * (12 + ENTRY.itemsize) for n, day, _ in shards if 1e8 * day == max(gone))
            assert size_of(root) + last > room


def test_pruning_spares_shards_used_since(tmp_path: Path) -> None:
    now = time.time()
    old = fill(tmp_path, range(5), used=now - 100)
    fresh = [fill(tmp_path, range(5), used=now - age) for age in (50, 10)]
    assert prune_store(tmp_path, 0, unused_since=now - 60) == 5 * (12 + ENTRY.itemsize)
    assert not old.exists()
    assert all(index.exists() and index.with_suffix(".rows").exists() for index in fresh)
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), range(5)) == list(range(5))


def test_rows_without_index_are_removed_after_an_hour(tmp_path: Path) -> None:
    index = fill(tmp_path, range(5))
    now = time.time()
    for age in (0, 3500, 3700, 10**6):
        orphan = index.with_name(f"{age}.rows")
        orphan.write_bytes(b"1234567")
        os.utime(orphan, (now - age, now - age))
    assert prune_store(tmp_path, float("inf")) == 14
    assert {path.stem for path in index.parent.glob("*.rows")} == {index.stem, "0", "3500"}
    assert index.exists()


def test_old_rows_without_index_go_with_their_folder(tmp_path: Path) -> None:
    index = fill(tmp_path, range(5))
    index.unlink()
    os.utime(index.with_suffix(".rows"), (1e9, 1e9))
    assert prune_store(tmp_path, float("inf")) == 60
    assert not list(tmp_path.iterdir())


def test_pruning_leaves_a_new_writer_alone(tmp_path: Path) -> None:
    index = fill(tmp_path, [])
    index.unlink()  # as if it had not got that far
    assert prune_store(tmp_path, 0) == 0
    assert index.with_suffix(".rows").exists()
    assert (index.parent / "about.json").exists()


@pytest.mark.parametrize("about", ["there", "lost"])
def test_pruning_removes_empty_folders_only(tmp_path: Path, about: str) -> None:
    index = fill(tmp_path, range(5), used=1e8)
    if about == "lost":
        (index.parent / "about.json").unlink()
    remaining = fill(tmp_path, range(5), used=2e8, about=OTHER)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.json").write_text("{}")
    assert prune_store(tmp_path, size_of(tmp_path) // 2) == 5 * (12 + ENTRY.itemsize)
    assert {path.name for path in tmp_path.iterdir()} == {remaining.parent.name, "files"}
    assert sorted(path.name for path in remaining.parent.iterdir()) == sorted(
        ["about.json", remaining.name, remaining.with_suffix(".rows").name]
    )
    assert (tmp_path / "files" / "0.json").exists()


def test_only_reading_marks_a_shard_as_used(tmp_path: Path) -> None:
    read, unread = fill(tmp_path, range(5), used=1e8), fill(tmp_path, range(5, 10), used=2e8)
    began = time.time()
    store = FeatureStore(tmp_path, ABOUT, row_type())
    store.has(digests_of(range(10)))
    assert [path.stat().st_mtime for path in (read, unread)] == [1e8, 2e8]
    found_in(store, [2, 77])
    assert read.stat().st_mtime > began - 60
    assert unread.stat().st_mtime == 2e8
    prune_store(tmp_path, size_of(tmp_path) // 2)
    assert read.exists()
    assert not unread.exists()


def test_a_reader_survives_pruning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, range(5), used=1e8)
    store = FeatureStore(tmp_path, ABOUT, row_type())
    prune_store(tmp_path, 0)
    assert found_in(store, range(5)) == []
    store.refresh()
    assert not store.has(digests_of(range(5))).any()
    put(store, range(3))
    store.close()
    store.refresh()
    assert found_in(store, range(5)) == [0, 1, 2]
    assert warnings_of(caplog) == []


def test_a_writer_survives_pruning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path, ABOUT, row_type())
    put(store, range(3))
    prune_store(tmp_path, 0)
    put(store, range(3, 6))
    store.close()
    put(store, range(6, 9))
    store.close()
    store.refresh()
    assert found_in(store, range(9)) == [6, 7, 8]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("what", ["a shard", "everything"])
def test_two_processes_may_prune_at_once(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = fill(tmp_path, range(5), used=1e8)
    fill(tmp_path, range(5), used=2e8)

    def listed(root: Path) -> list[StoreEntry]:
        found = list_entries(root)
        if what == "everything":
            shutil.rmtree(index.parent)
        else:
            index.unlink()
            index.with_suffix(".rows").unlink()
        return found

    monkeypatch.setattr(store_admin, "list_entries", listed)
    prune_store(tmp_path, 0)
    assert not list(tmp_path.iterdir())
