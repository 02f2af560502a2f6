"""Jobs in processes of their own: however one ends, the others continue, and its reason is recorded."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import ROOT
from tl_research.errors import DivergedError, InputError
from tl_research.experiment.outcome import record_outcome
from tl_research.runs.run import Run
from tl_research.sweeps import process_pool as pool
from tl_research.sweeps.job_process import Task
from tl_research.sweeps.machine_slots import Slot
from tl_research.sweeps.process_pool import Job, Limits, Outcome, ProcessPool
from tl_research.system import progress

slow = pytest.mark.slow


# What jobs do, each in a process of its own


def diverge(directory: Path) -> float:
    raise DivergedError("head", 0, 0, 1.0)


def job(directory: Path, what: Callable[[Path], float]) -> float:
    """A run that keeps its status as an experiment does."""
    run = Run.claim(directory, "replace")
    with closing(run), record_outcome(run):
        return what(directory)


def succeed(_: Path) -> float:
    return 0.75


def fail(_: Path) -> float:
    raise RuntimeError("there is a reason")


def refuse(_: Path) -> float:
    raise InputError("data.root=x: does not exist")


def leave(_: Path) -> float:
    raise SystemExit(3)


def die(_: Path) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def abort(_: Path) -> float:
    os.abort()


def segfault(_: Path) -> float:
    ctypes.string_at(0)
    return 0.0


def vanish(_: Path) -> float:
    os._exit(7)


def hang(directory: Path) -> float:
    try:
        time.sleep(120)
    finally:
        (directory / "tidied").touch()
    return 0.0


def hang_deaf(_: Path) -> float:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)
    return 0.0


def nap(directory: Path) -> float:
    (directory / "began").write_text(str(time.monotonic()))
    time.sleep(1)
    (directory / "ended").write_text(str(time.monotonic()))
    return 0.0


def take_memory(_: Path) -> float:
    held = [np.empty(2**25) for _ in range(1000)]
    return float(len(held))


def take_tensors(_: Path) -> float:
    import tensorflow as tf

    held = [tf.ones(2**26) for _ in range(1000)]
    return float(len(held))


def take_in_c(_: Path) -> float:
    """The C++ library's `operator new`, which nobody catches."""
    allocate = ctypes.CDLL("libstdc++.so.6")["_Znwm"]
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for _ in range(1000):
        allocate(2**28)
    return 0.0


def take_some_memory(_: Path) -> float:
    return float(np.ones(2**24)[0])


def speak(_: Path) -> float:
    print("printed")  # noqa: T201
    print("printed as an error", file=sys.stderr)  # noqa: T201
    os.write(1, b"written by C\n")
    logging.getLogger("tl_research").warning("logged")
    return 0.0


def look_around(directory: Path) -> float:
    from tl_research.backend.start import start_backend

    about = {
        "cores": sorted(os.sched_getaffinity(0)),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "growth": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH"),
        "threads": start_backend(),
        "preloaded": "tensorflow" in sys.modules,
        "pid": os.getpid(),
        "limit": resource.getrlimit(resource.RLIMIT_AS)[0],
    }
    (directory / "about.json").write_text(json.dumps(about))
    time.sleep(0.7)
    return 0.0


def progress_made(_: Path) -> float:
    for number in (0, 3):
        time.sleep(2 * pool.TELL_EVERY)
        with progress.bar() as bar:
            bar.advance(bar.add_task("features", total=12), number)
    time.sleep(0.6)
    return 0.0


def look_on(directory: Path) -> float:
    """What a sweep's job does where another process is at work."""
    with contextlib.suppress(InputError):
        Run.claim(directory, "resume")
    return float("nan")


def look_on_and_die(directory: Path) -> float:
    look_on(directory)
    return die(directory)


def hang_before_it_knows(directory: Path) -> float:
    """A run that was done before is not touched until its images have been looked at."""
    with closing(Run.claim(directory, "resume")) as run:
        assert run.kept
        return hang(directory)


class Silent:
    """A view that records its calls."""

    def __init__(self, seen: Sequence[Outcome] = ()) -> None:
        self.seen = seen
        self.ends: list[str] = []
        self.doings: set[str] = set()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def refresh(self) -> None:
        self.doings |= {outcome.doing for outcome in self.seen}

    def ended(self, outcome: Outcome) -> None:
        self.ends.append(outcome.job.name)


def outcomes(root: Path, *works: Callable[[Path], float]) -> list[Outcome]:
    folders = [root / f"{number}-{work.__name__}" for number, work in enumerate(works)]
    return [
        Outcome(Job(folder.name, partial(Task, folder, partial(job, folder, work))))
        for folder, work in zip(folders, works, strict=True)
    ]


def run(root: Path, *works: Callable[[Path], float], **limits: Any) -> list[Outcome]:
    """Run jobs and assert that the status of each on disk is its outcome."""
    found = outcomes(root, *works)
    ProcessPool(Limits(**limits)).run(found, Silent())
    for outcome in found:
        if outcome.state != "waiting":
            status = json.loads((root / outcome.job.name / "status.json").read_text())
            assert (status["state"], status["reason"]) == (outcome.state, outcome.reason)
            assert status["ended"]
    return found


def states(found: Sequence[Outcome]) -> list[str]:
    return [outcome.state for outcome in found]


# Without a process


@given(st.integers(1, 40), st.sets(st.integers(0, 200), min_size=1, max_size=20), st.lists(st.integers(0, 99)))
def test_slots_are_equal_and_disjoint_where_possible(count: int, cores: set[int], gpus: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: cores)
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, gpus)))
        slots = Slot.of_machine(count)
    assert len(slots) == count
    for parts, whole in (([slot.cores for slot in slots], cores), ([slot.gpus for slot in slots], gpus)):
        assert len({len(part) for part in parts}) == 1, "equal"
        assert len(parts[0]) == (max(len(whole) // count, 1) if whole else 0), "as large as can be"
    used = [core for slot in slots for core in slot.cores]
    assert set(used) <= cores
    if count <= len(cores):
        assert len(set(used)) == len(used), "disjoint"
    else:
        assert set(used) == cores, "none idle while others are shared"
        assert max(map(used.count, used)) - min(map(used.count, used)) <= 1, "shared evenly"
    devices = [gpu for slot in slots for gpu in slot.gpus]
    if count <= len(gpus):
        assert devices == [str(gpu) for gpu in gpus][: len(devices)], "each once, by its own name"


@pytest.mark.parametrize(
    ("visible", "parts"),
    [
        ("0,1,2,3", [("0", "1"), ("2", "3")]),
        ("GPU-aa,GPU-bb", [("GPU-aa",), ("GPU-bb",)]),
        (" 3 , 1 ", [("3",), ("1",)]),
        ("7", [("7",), ("7",)]),
        ("", [(), ()]),
        ("-1", [(), ()]),
    ],
)
def test_gpus_are_those_that_the_environment_leaves_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, parts: list[tuple[str, ...]]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.gpus for slot in Slot.of_machine(2)] == parts


@pytest.mark.parametrize("limits", [{"n_jobs": 0}, {"timeout": 0}, {"memory_gb": -1}, {"max_failures": 0}, {"n": 1}])
def test_limits_out_of_range_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limits(**limits)  # type: ignore[arg-type]


# In processes


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server is there."""
    run(tmp_path_factory.mktemp("warm"), succeed)


@slow
@pytest.mark.usefixtures("warm")
def test_however_a_job_ends_the_others_finish(tmp_path: Path) -> None:
    found = run(tmp_path, succeed, fail, die, abort, segfault, hang, vanish, leave, refuse, succeed, timeout=2)
    assert [(o.job.name.partition("-")[2], o.state, o.reason) for o in found] == [
        ("succeed", "done", None),
        ("fail", "failed", "RuntimeError: there is a reason"),
        ("die", "failed", "killed by SIGKILL (by a person, or by the system, out of memory)"),
        ("abort", "failed", "killed by SIGABRT"),
        ("segfault", "failed", "killed by SIGSEGV"),
        ("hang", "failed", "timeout: it took longer than 2 s"),
        ("vanish", "failed", "its process ended with exit status 7; see output.log"),
        ("leave", "failed", "SystemExit: 3"),
        ("refuse", "failed", "data.root=x: does not exist"),
        ("succeed", "done", None),
    ]
    assert [o.value for o in found if o.state == "done"] == [0.75, 0.75]
    assert all(np.isnan(o.value) for o in found if o.state != "done")
    assert 2 <= found[5].seconds < 3
    assert all(o.seconds < 2 for o in found if o.job.name != "5-hang")
    assert "RuntimeError: there is a reason" in (tmp_path / "1-fail" / "output.log").read_text()


@slow
@pytest.mark.parametrize("work", [take_memory, take_tensors, take_in_c])
def test_a_job_out_of_memory_says_so_and_the_others_finish(tmp_path: Path, work: Callable[[Path], float]) -> None:
    found = run(tmp_path, take_some_memory, work, take_some_memory, memory_gb=4)
    assert states(found) == ["done", "failed", "done"]
    assert found[1].reason is not None
    assert found[1].reason.startswith("out of memory: "), found[1].reason


@slow
def test_the_memory_limit_applies_to_jobs_only(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    (outcome,) = run(tmp_path, look_around, memory_gb=4)
    assert json.loads((tmp_path / outcome.job.name / "about.json").read_text())["limit"] == 4 * 2**30
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@slow
def test_after_max_failures_no_further_job_starts(tmp_path: Path) -> None:
    found = run(tmp_path, succeed, fail, die, succeed, fail, max_failures=2)
    assert states(found) == ["done", "failed", "failed", "waiting", "waiting"]
    assert not (tmp_path / "3-succeed").exists()
    found = run(tmp_path / "two", fail, nap, succeed, max_failures=1, n_jobs=2)
    assert states(found) == ["failed", "done", "waiting"]


@slow
def test_failures_and_diverged_jobs_count_over_all_batches(tmp_path: Path) -> None:
    together = ProcessPool(Limits(max_failures=2))
    for number, expected in enumerate(("diverged", "diverged", "waiting")):
        found = outcomes(tmp_path / str(number), diverge)
        together.run(found, Silent())
        assert states(found) == [expected]


@slow
def test_two_at_a_time_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    found = run(tmp_path, *[look_around] * 4, n_jobs=2)
    assert states(found) == ["done"] * 4
    about = [json.loads((tmp_path / o.job.name / "about.json").read_text()) for o in found]
    slots = Slot.of_machine(2)
    assert {(*a["cores"], a["gpus"]) for a in about} == {(*sorted(s.cores), ",".join(s.gpus)) for s in slots}
    assert {a["gpus"] for a in about} == {"0,1", "2,3"}
    assert all(a["growth"] == "true" for a in about)
    assert all(a["threads"] == len(a["cores"]) for a in about)
    assert all(a["preloaded"] for a in about)
    assert len({a["pid"] for a in about}) == 4, "each in a process of its own"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "TF_FORCE_GPU_ALLOW_GROWTH" not in os.environ


@slow
def test_without_gpus_the_environment_of_jobs_is_unchanged(tmp_path: Path) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")) or "CUDA_VISIBLE_DEVICES" in os.environ:
        pytest.skip("there are some")
    (outcome,) = run(tmp_path, look_around)
    about = json.loads((tmp_path / outcome.job.name / "about.json").read_text())
    assert (about["gpus"], about["growth"]) == (None, None)
    assert about["cores"] == sorted(os.sched_getaffinity(0))


@slow
def test_exactly_n_jobs_run_in_parallel(tmp_path: Path) -> None:
    found = run(tmp_path, *[nap] * 5, n_jobs=3)
    spans = [[float((tmp_path / o.job.name / f).read_text()) for f in ("began", "ended")] for o in found]
    at_once = [sum(began <= start < ended for began, ended in spans) for start, _ in spans]
    assert max(at_once) == 3


@slow
def test_a_task_is_made_only_when_its_job_starts(tmp_path: Path) -> None:
    asked: list[str] = []
    found = outcomes(tmp_path, succeed, succeed, succeed)

    def asking(outcome: Outcome) -> Outcome:
        def task() -> Task:
            asked.append(states(found)[0])
            return outcome.job.task()

        return Outcome(Job(outcome.job.name, task))

    found = [asking(outcome) for outcome in found]
    view = Silent(found)
    ProcessPool().run(found, view)
    assert asked == ["waiting", "done", "done"]
    assert view.ends == [outcome.job.name for outcome in found]


@slow
def test_a_job_prints_to_its_log_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, speak)
    log = (tmp_path / "0-speak" / "output.log").read_text()
    for line in ("printed\n", "printed as an error\n", "written by C\n", "logged"):
        assert line in log
    printed = capfd.readouterr()
    assert "printed" not in printed.out + printed.err
    run(tmp_path, speak)
    assert (tmp_path / "0-speak" / "output.log").read_text() == 2 * log, "a second try is added"


@slow
def test_progress_of_a_job_is_received(tmp_path: Path) -> None:
    found = outcomes(tmp_path, progress_made)
    view = Silent(found)
    ProcessPool().run(found, view)
    assert states(found) == ["done"]
    assert "features 3/12" in view.doings
    assert found[0].doing == "", "nothing any more"


@slow
@pytest.mark.parametrize("work", [look_on, look_on_and_die])
def test_a_directory_in_use_fails_the_job_and_stays_as_it_is(tmp_path: Path, work: Callable[[Path], float]) -> None:
    other = Run.claim(tmp_path)
    outcome = Outcome(Job("a job", partial(Task, tmp_path, partial(work, tmp_path))))
    ProcessPool().run([outcome], Silent())
    assert outcome.state == "failed"
    if work is look_on:
        assert outcome.reason == "another process is at work in its directory"
    assert other.status["state"] == "running"
    assert other.status["pid"] == os.getpid()
    other.close()


@slow
@pytest.mark.usefixtures("warm")
def test_a_job_killed_before_it_read_its_status_is_not_done(tmp_path: Path) -> None:
    with closing(Run.claim(tmp_path)) as before:
        before.set_status("done")
    outcome = Outcome(Job("a job", partial(Task, tmp_path, partial(hang_before_it_knows, tmp_path))))
    ProcessPool(Limits(timeout=1)).run([outcome], Silent())
    assert (outcome.state, outcome.reason) == ("failed", "timeout: it took longer than 1 s")
    assert Run.open(tmp_path).status["state"] == "done", "though its being so was not looked at"


@slow
def test_a_job_that_dies_gets_a_new_reason(tmp_path: Path) -> None:
    with closing(Run.claim(tmp_path)) as before:
        before.set_status("failed", "what it was then")
    outcome = Outcome(Job("a job", partial(Task, tmp_path, partial(die, tmp_path))))
    ProcessPool().run([outcome], Silent())
    assert outcome.state == "failed"
    assert outcome.reason == "killed by SIGKILL (by a person, or by the system, out of memory)"


@slow
def test_consecutive_jobs_share_no_state(tmp_path: Path) -> None:
    pids = {
        json.loads((tmp_path / str(number) / "0-look_around" / "about.json").read_text())["pid"]
        for number in range(3)
        if run(tmp_path / str(number), look_around)
    }
    assert len(pids) == 3


HELD = """
import resource, sys
from pathlib import Path
from tests.sweeps.test_process_pool import die, fail, run, succeed

def held():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(list(Path("/proc/self/fd").iterdir()))

place = Path(sys.argv[1])
run(place / "first", *[succeed] * 5, n_jobs=2)
before = held()
for number in range(3):
    run(place / str(number), *[succeed, fail, die, succeed, succeed] * 2, n_jobs=2)
print(*(after - then for after, then in zip(held(), before)))
"""


@slow
def test_thirty_jobs_leak_no_process_descriptor_or_memory(tmp_path: Path) -> None:
    """In a process of its own: what pytest and all tests before hold would sway more than the jobs."""
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    memory, files = map(int, result.stdout.splitlines()[-1].split())
    assert memory < 4e6
    assert files <= 1


# The process that starts jobs comes to an end itself

PARENT = "import sys; from tests.sweeps.test_process_pool import parent; parent(*sys.argv[1:])"


def parent(root: str, timeout: str, *names: str) -> None:
    """A process that runs a pool of the jobs of those names, two at a time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = outcomes(Path(root), *(globals()[name] for name in names))
    try:
        ProcessPool(Limits(n_jobs=2, timeout=float(timeout))).run(found, Silent())
    except KeyboardInterrupt:
        for outcome in found:
            print(outcome.state, outcome.reason, sep="|")  # noqa: T201
        raise SystemExit(130) from None
    print(json.dumps([[outcome.state, outcome.seconds] for outcome in found]))  # noqa: T201


@contextlib.contextmanager
def started(root: Path, *names: str, timeout: float = 100) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PARENT, str(root), str(timeout), *names]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def at_work(root: Path, count: int) -> list[int]:
    """The processes of the jobs, as soon as so many are at work."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [json.loads(path.read_text()) for path in root.glob("*/status.json")]
        if sum(status["state"] == "running" for status in found) == count:
            return [status["pid"] for status in found if status["state"] == "running"]
        time.sleep(0.02)
    raise AssertionError("they have not begun")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pids: Sequence[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_alive, pids))


@slow
def test_an_interruption_ends_running_jobs_and_is_recorded(tmp_path: Path) -> None:
    with started(tmp_path, "succeed", "hang", "hang", "succeed") as process:
        pids = at_work(tmp_path, 2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert gone(pids, 0)
    state, reason = "interrupted", "the sweep was interrupted"
    assert output.splitlines() == ["done|None", *[f"{state}|{reason}"] * 2, "waiting|None"]
    for name in ("1-hang", "2-hang"):
        status = json.loads((tmp_path / name / "status.json").read_text())
        assert (status["state"], status["reason"]) == (state, reason)
        assert (tmp_path / name / "tidied").exists(), "it could end in order"
    assert not (tmp_path / "3-succeed").exists()


@slow
def test_a_job_that_ignores_signals_is_killed_and_recorded(tmp_path: Path) -> None:
    with started(tmp_path, "hang_deaf") as process:
        pids = at_work(tmp_path, 1)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < pool.GRACE + 3
    assert gone(pids, 0)
    assert output.splitlines() == ["interrupted|the sweep was interrupted"]
    status = json.loads((tmp_path / "0-hang_deaf" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("interrupted", "the sweep was interrupted")


@slow
def test_a_second_interruption_kills_at_once(tmp_path: Path) -> None:
    with started(tmp_path, "hang_deaf") as process:
        pids = at_work(tmp_path, 1)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert gone(pids, 0)


@slow
@pytest.mark.parametrize("name", ["hang", "hang_deaf"])
def test_jobs_end_with_their_parent_process(tmp_path: Path, name: str) -> None:
    with started(tmp_path, name, name) as process:
        pids = at_work(tmp_path, 2)
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        process.kill()
        assert gone(pids, 1.0)
        assert gone([server], 2.0), "and so does the server"
    for folder in tmp_path.iterdir():
        assert Run(folder).status["state"] == "interrupted"
        Run.claim(folder, "resume").close()


@slow
def test_seconds_exclude_the_start_of_the_server(tmp_path: Path) -> None:
    with started(tmp_path, "succeed", "succeed", timeout=0.7) as process:
        ended = json.loads(process.communicate(timeout=60)[0])
    assert [state for state, _ in ended] == ["done", "done"]
    assert max(seconds for _, seconds in ended) < 0.5


@slow
def test_no_temporary_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with started(tmp_path / "runs", "succeed", "die") as process:
        process.communicate(timeout=60)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_default_n_jobs_depends_on_machine_and_number_of_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ProcessPool(Limits(n_jobs=None))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tl_research.sweeps.process_pool.visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    pages = {"SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", lambda name: pages.get(name, 2**20 * 24 // 4))  # 24 GB
    assert [pool.num_parallel(count) for count in (1, 3, 100)] == [1, 3, 6]
    monkeypatch.setattr(os, "sysconf", lambda name: pages.get(name, 2**18))  # 1 GB
    assert pool.num_parallel(100) == 1
    monkeypatch.setattr("tl_research.sweeps.process_pool.visible_gpus", lambda: ["0", "1"])
    assert pool.num_parallel(100) == 2
    assert ProcessPool(Limits(n_jobs=5)).num_parallel(1) == 5
