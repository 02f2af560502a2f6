"""Processes that fill one store together: each row is computed once, and every process gets all rows."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.features.test_store import ABOUT, digests_of, fill, flipped, found_in, row_type, rows_of
from tl_research.features import row_claims as claims_module
from tl_research.features import shared_fill
from tl_research.features import store as feature_store
from tl_research.features.engines import BATCH
from tl_research.features.row_claims import RowClaims
from tl_research.features.row_source import PartSources, RowSource
from tl_research.features.shared_fill import SharedFill
from tl_research.features.store import FeatureStore
from tl_research.features.table import Features, FeatureTable


class Images:
    """A data set whose image `i` is the number `numbers[i]`."""

    def __init__(self, numbers: list[int]):
        self.numbers = numbers
        self.digests = [digest.tobytes() for digest in digests_of(numbers)]

    def __len__(self) -> int:
        return len(self.numbers)

    def row_digest(self, index: int) -> bytes:
        return self.digests[index]

    def pixels(self, index: int, size: int) -> np.ndarray:
        return np.array([[np.unravel_index(self.numbers[index], (256, 256, 256))]], np.uint8)


class Filler:
    """A feature table with a store object of its own, as in a process of its own; its engine counts its calls."""

    def __init__(self, root: Path | None, numbers: list[int], seconds: float = 0.0, threads: int = 1):
        self.computed: Counter[int] = Counter()
        self.counting = threading.Lock()
        self.seconds = seconds
        self.store = FeatureStore(root, ABOUT, row_type()) if root else None
        self.numbers = numbers
        self.rows: np.ndarray | None = None
        network: Any = SimpleNamespace(output_shape=(None, 3), input_shape=(None, 1, 1, 3))
        data: Any = Images(numbers)
        self.table = FeatureTable(network, data, Features(), "auto", threads)
        source = RowSource(self.store, lambda pixels: self.engine(pixels), data, 1, self.table.row, threads)
        self.table.source = PartSources([source])

    def engine(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        flat = pixels.reshape(len(pixels), 3).astype(int)
        numbers = np.ravel_multi_index(tuple(flat.T), (256, 256, 256))
        with self.counting:
            self.computed.update(int(n) for n in numbers)
        return rows_of(numbers)

    def run(self) -> None:
        self.rows = self.table.get(np.arange(len(self.numbers)))

    def has_all(self) -> None:
        assert self.rows is not None, "the thread has not ended"
        np.testing.assert_array_equal(self.rows, rows_of(self.numbers))


def together(fillers: list[Filler], seconds: float = 20) -> None:
    """Run fillers at once, each in a thread; none may take longer than `seconds`, and no claims may stay behind."""
    threads = [threading.Thread(target=filler.run, daemon=True) for filler in fillers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    for filler in fillers:
        filler.has_all()
        assert filler.table.computed + filler.table.hit == len(filler.numbers)
        assert filler.store is None or not list(filler.store.folder.glob("*.claims"))


def once_each(fillers: list[Filler], numbers: list[int]) -> None:
    computed = sum((filler.computed for filler in fillers), Counter[int]())
    computed[0] = min(computed[0], 1)  # the padding of a batch, too
    assert computed == Counter(numbers)
    assert sum(filler.table.computed for filler in fillers) == len(numbers)


# Several processes


@pytest.mark.parametrize(
    ("spans", "threads"),
    [([range(20 * BATCH + 5)] * 4, (1, 2, 1, 3)), ([range(200), range(100, 300), range(250, 120, -1)], (1, 1, 1))],
    ids=["the same rows", "rows that overlap"],
)
def test_processes_together_compute_each_row_once(tmp_path: Path, spans: list[range], threads: tuple[int, ...]) -> None:
    fillers = [Filler(tmp_path, list(span), 0.01, count) for span, count in zip(spans, threads, strict=True)]
    together(fillers)
    once_each(fillers, sorted({number for span in spans for number in span}))
    assert sum(filler.table.computed > 0 for filler in fillers) > 1, "they share the work"


def test_only_missing_and_damaged_rows_are_computed(tmp_path: Path) -> None:
    index = fill(tmp_path, range(4 * BATCH))
    for number in (0, 3, 40):
        flipped(index.with_suffix(".rows"), number * 12)
    fillers = [Filler(tmp_path, list(range(5 * BATCH)), 0.02) for _ in range(2)]
    together(fillers)
    once_each(fillers, [0, 3, 40, *range(4 * BATCH, 5 * BATCH)])


CHILD = "import sys; from tests.features.test_row_claims import child; child(*sys.argv[1:])"


def child(root: str, count: str, seconds: str) -> None:
    """Fill the store in a process of its own, and print the computed numbers."""
    filler = Filler(Path(root), list(range(int(count))), float(seconds), threads=2)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    filler.run()
    filler.has_all()
    print(json.dumps(sorted(filler.computed)), filler.table.computed, flush=True)  # noqa: T201


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def started(count: int, seconds: float = 0.01) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(count), str(seconds)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def ready(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_its_rows_to_others(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], number: int
) -> None:
    numbers = list(range(12 * BATCH))
    process = start(len(numbers), 0.1)
    ready(process)
    deadline = time.monotonic() + 30
    while not (stored := found_in(FeatureStore(tmp_path, ABOUT, row_type()), numbers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stored
    others = [Filler(tmp_path, numbers, 0.1) for _ in range(2)]
    threading.Timer(0.15, process.send_signal, [number]).start()
    together(others)
    process.wait()
    assert process.returncode == -number
    there = FeatureStore(tmp_path, ABOUT, row_type())
    assert found_in(there, numbers) == numbers
    entries = sum(len(shard.entries) for shard in there.shards)
    assert entries == len(numbers), "no row is in the store twice"


# Without a store, locks or room


def test_without_a_store_all_is_computed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()
    for root, told in ((None, set()), (file, {f"features.store={file}: Not a directory; the run goes on without"})):
        fillers = [Filler(root, list(range(3 * BATCH + 1))) for _ in range(2)]
        together(fillers)
        for filler in fillers:
            once_each([filler], filler.numbers)
        assert set(caplog.messages) == told


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("fcntl.flock", errno.ENOLCK),
        ("fcntl.flock", errno.ENOTSUP),
        (f"{RowClaims.__module__}.RowClaims.note", errno.ENOSPC),
    ],
)
def test_without_locks_or_room_for_claims_all_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, target: str, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(target, fails)
    fillers = [Filler(tmp_path, list(range(3 * BATCH + 1)), 0.02) for _ in range(2)]
    together(fillers)
    for filler in fillers:
        assert set(filler.computed) == set(filler.numbers)
    assert found_in(FeatureStore(tmp_path, ABOUT, row_type()), fillers[0].numbers) == fillers[0].numbers
    assert not caplog.records


@pytest.mark.parametrize("who", ["both", "one"])
def test_processes_with_a_full_disk_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """There may be room for claims, which are a few bytes, but not for rows."""
    fillers = [Filler(tmp_path, list(range(4 * BATCH)), 0.05) for _ in range(2)]
    append = feature_store.ShardWriter.append

    def full(self: feature_store.ShardWriter, *arguments: np.ndarray) -> None:
        if who == "both" or (fillers[0].store is not None and self is fillers[0].store.writer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, *arguments)

    monkeypatch.setattr(feature_store.ShardWriter, "append", full)
    together(fillers, seconds=5)


# Claims alone


def claim(claims: RowClaims, numbers: list[int], count: int, looks: list[bool] | None = None) -> list[int]:
    """Claim rows as a fill does; `looks` records whether it had to read the store first."""
    positions = claims.take(digests_of(numbers), count)
    if looks is not None:
        looks.append(positions is None)
    while positions is None:
        positions = claims.take(digests_of(numbers), count)
    return positions.tolist()


def test_a_claim_excludes_others_while_its_process_lives(tmp_path: Path) -> None:
    first, second = RowClaims(tmp_path), RowClaims(tmp_path)
    assert claim(first, [0, 1, 2, 3, 4], 3) == [0, 1, 2]
    assert claim(second, [4, 3, 2, 1, 0], 3) == [0, 1]
    assert claim(second, [0, 1, 2], 3) == []
    assert claim(first, [2, 3, 0], 3) == [0, 2], "it may repeat its own claim"
    first.close()
    assert claim(second, [0, 1, 2], 3) == [0, 1, 2]


@pytest.mark.parametrize("ends", ["closes", "is killed", "is killed, and a third process notices first"])
def test_a_process_that_ended_between_two_claims_is_noticed(tmp_path: Path, ends: str) -> None:
    first, second, third = (RowClaims(tmp_path) for _ in range(3))
    looks: list[bool] = []
    claim(first, [0], 1, looks)
    claim(first, [1], 1, looks)
    assert looks == [True, False], "the first claim always reads the store"
    claim(second, [2], 1)
    claim(first, [3], 1, looks)
    assert looks[-1] is False, "a running process has left nothing yet"
    if ends == "closes":
        second.close()
    else:
        assert second.lock is not None
        second.lock.close()
    if "third" in ends:
        claim(third, [6], 1)
        assert not second.path.exists()
    claim(first, [4], 1, looks)
    claim(first, [5], 1, looks)
    assert looks[-2:] == [True, False]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-3", b"\xff\xfe", b"12\n"])
def test_a_damaged_count_does_not_prevent_claims(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claims.lock").write_bytes(content)
    first, second = RowClaims(tmp_path), RowClaims(tmp_path)
    looks: list[bool] = []
    assert claim(first, [0, 1], 1, looks) == [0]
    assert claim(second, [0, 1], 2) == [1]
    second.close()
    claim(first, [0], 1, looks)
    assert looks == [True, True]


# Any order of events


class Process:
    """A process that fills a store step by step."""

    def __init__(self, root: Path, numbers: list[int]):
        self.numbers = numbers
        self.store = FeatureStore(root, ABOUT, row_type())
        rows = np.full((len(numbers), 3), np.nan, np.float32)
        digests = digests_of(numbers)
        found = self.store.read(digests, rows)
        self.fill = SharedFill(self.store, digests, rows, np.flatnonzero(~found), lambda _: None)
        self.batches = self.fill.batches()
        self.taken: list[np.ndarray] = []
        self.computed: list[int] = []

    @property
    def promised(self) -> set[int]:
        """The rows that it has claimed and not stored yet."""
        return {self.numbers[position] for positions in self.taken for position in positions}

    def take(self) -> None:
        positions = next(self.batches, None)
        if positions is None:
            self.fill.wait()
            self.batches = self.fill.batches()
        else:
            self.taken.append(positions)
            self.computed += [self.numbers[position] for position in positions]

    def put(self) -> None:
        if self.taken:
            positions = self.taken.pop(0)
            self.fill.put(positions, rows_of([self.numbers[position] for position in positions]))

    @property
    def done(self) -> bool:
        return not self.taken and not len(self.fill.left)

    def end(self) -> None:
        self.fill.__exit__(None, None, None)
        self.store.close()

    def die(self) -> None:
        if self.fill.claims is not None and self.fill.claims.lock is not None:
            self.fill.claims.lock.close()
        self.store.close()


@settings(deadline=None, max_examples=60)
@given(
    wanted=st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=10, unique=True), min_size=2, max_size=4),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["take", "take", "put", "put", "die", "again"])), max_size=40
    ),
)
def test_rows_are_computed_once_in_any_order_of_events(wanted: list[list[int]], steps: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_fill, "BATCH", 2)
        patch.setattr(shared_fill, "PAUSE", 0.0)
        patch.setattr(feature_store, "LOOK_SECONDS", 1e9)
        patch.setattr(shared_fill.time, "sleep", lambda _: None)
        processes = [Process(Path(folder), numbers) for numbers in wanted]
        everybody, lost = list(processes), Counter[int]()

        def step(number: int, what: str) -> None:
            process = processes[number]
            if what in ("take", "put"):
                getattr(process, what)()
            elif what == "die" or process.done:
                if what == "die":
                    lost.update(process.promised)
                    process.die()
                else:
                    process.end()
                processes[number] = Process(Path(folder), process.numbers)
                everybody.append(processes[number])
            for one, other in combinations(processes, 2):
                assert not one.promised & other.promised, "two compute the same"

        for number, what in steps:
            step(number % len(processes), what)
        for _ in range(200):  # all processes continue until each has all rows
            for number, process in enumerate(processes):
                if not process.done:
                    step(number, "take")
                    step(number, "put")
                else:
                    process.end()
        assert all(process.done for process in processes), "a process never finishes"
        for process in processes:
            np.testing.assert_array_equal(process.fill.rows, rows_of(process.numbers))
        computed = Counter(number for process in everybody for number in process.computed)
        assert computed == Counter({n for numbers in wanted for n in numbers}) + lost


@pytest.mark.parametrize("point", ["try_lock", "is_held"])
def test_a_process_killed_while_claiming_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    (tmp_path / "another.claims").touch()
    with monkeypatch.context() as patch:
        patch.setattr(claims_module, point, die)
        with pytest.raises(KilledError):
            claim(RowClaims(tmp_path), [0, 1, 2], 5)
    assert claim(RowClaims(tmp_path), [0, 1, 2], 5) == [0, 1, 2]
