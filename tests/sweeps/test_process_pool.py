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
import threading
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
from tl_research.runs.status import RunState
from tl_research.sweeps import process_pool as pool
from tl_research.sweeps.job_process import TELL_EVERY, Task
from tl_research.sweeps.machine_slots import Slot
from tl_research.sweeps.process_pool import Job, Limits, Outcome, ProcessPool
from tl_research.system import progress
from tl_research.system.interruption import interrupt

pytestmark = pytest.mark.alone

slow = pytest.mark.slow


# What jobs do, each in a process of its own


def throw(error: BaseException) -> Callable[[Path], Any]:
    def work(_: Path) -> None:
        raise error

    return work


def hang(directory: Path) -> float:
    try:
        time.sleep(120)
    finally:
        (directory / "tidied").touch()
    return 0.0


def die(_: Path) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def hang_deaf(_: Path) -> float:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)
    return 0.0


def stop(_: Path) -> float:
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0.0


def take_tensors(_: Path) -> list[Any]:
    import tensorflow as tf

    return [tf.ones(2**26) for _ in range(1000)]


def speak(_: Path) -> float:
    print("printed")  # noqa: T201
    print("printed as an error", file=sys.stderr)  # noqa: T201
    os.write(1, b"written by C\n")
    logging.getLogger("tl_research").warning("logged")
    return 0.0


def look_around(directory: Path) -> float:
    from tl_research.backend.start import start_backend

    began = time.monotonic()
    about = {
        "cores": sorted(os.sched_getaffinity(0)),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "growth": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH"),
        "threads": start_backend(),
        "preloaded": "tensorflow" in sys.modules,
        "pid": os.getpid(),
        "limit": resource.getrlimit(resource.RLIMIT_AS)[0],
    }
    time.sleep(1)
    about["span"] = (began, time.monotonic())
    (directory / "about.json").write_text(json.dumps(about))
    return 0.0


def progress_twice(_: Path) -> float:
    for number in (0, 3):
        time.sleep(2 * TELL_EVERY)
        with progress.bar() as bar:
            bar.advance(bar.add_task("features", total=12), number)
    time.sleep(0.6)
    return 0.0


WORKS: dict[str, Callable[[Path], Any]] = {
    "succeed": lambda _: 0.75,
    "fail": throw(RuntimeError("there is a reason")),
    "refuse": throw(InputError("data.root=x: does not exist")),
    "diverge": throw(DivergedError("head", 0, 0, 1.0)),
    "leave": throw(SystemExit(3)),
    "die": die,
    "segfault": lambda _: ctypes.string_at(0),
    "vanish": lambda _: os._exit(7),
    "hang": hang,
    "hang_deaf": hang_deaf,
    "take_memory": lambda _: [np.empty(2**25) for _ in range(1000)],
    "take_some_memory": lambda _: float(np.ones(2**24)[0]),
    "take_tensors": take_tensors,
    "stop": stop,
    "sleep": lambda _: time.sleep(6) or 0.5,
    "speak": speak,
    "look_around": look_around,
    "progress_twice": progress_twice,
}


def job(directory: Path, name: str) -> float:
    """A run that keeps its status as an experiment does."""
    run = Run.claim(directory, "replace")
    with closing(run), record_outcome(run):
        return WORKS[name](directory)


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


def outcomes(root: Path, *works: str) -> list[Outcome]:
    folders = [root / f"{number}-{work}" for number, work in enumerate(works)]
    return [
        Outcome(Job(folder.name, partial(Task, folder, partial(job, folder, work))))
        for folder, work in zip(folders, works, strict=True)
    ]


def written(root: Path, folder: str, name: str = "status.json") -> dict[str, Any]:
    return json.loads((root / folder / name).read_text())


def run(root: Path, *works: str, n_jobs: int | None = 1, **limits: Any) -> list[Outcome]:
    """Run jobs and assert that the status of each on disk is its outcome."""
    found = outcomes(root, *works)
    ProcessPool(Limits(n_jobs=n_jobs, **limits)).run(found, Silent())
    for outcome in found:
        if outcome.state != "waiting":
            status = written(root, outcome.job.name)
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


def test_default_n_jobs_depends_on_machine_and_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = ProcessPool(Limits(n_jobs=None))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tl_research.sweeps.process_pool.visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    pages = {"SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", lambda name: pages.get(name, 2**20 * 24 // 4))  # 24 GB
    assert [automatic.num_parallel(count) for count in (1, 3, 100)] == [1, 3, 6]
    monkeypatch.setattr(os, "sysconf", lambda name: pages.get(name, 2**18))  # 1 GB
    assert automatic.num_parallel(100) == 1
    monkeypatch.setattr("tl_research.sweeps.process_pool.visible_gpus", lambda: ["0", "1"])
    assert automatic.num_parallel(100) == 2
    assert ProcessPool(Limits(n_jobs=5)).num_parallel(1) == 5


# In processes

KILLED = "killed by SIGKILL (by a person, or by the system, out of memory)"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server is there."""
    run(tmp_path_factory.mktemp("warm"), "succeed")


@slow
@pytest.mark.usefixtures("warm")
def test_however_a_job_ends_the_others_finish(tmp_path: Path) -> None:
    ends = {
        "fail": ("failed", "RuntimeError: there is a reason"),
        "die": ("failed", KILLED),
        "segfault": ("failed", "killed by SIGSEGV"),
        "hang": ("failed", "timeout: it took longer than 2 s"),
        "vanish": ("failed", "its process ended with exit status 7; see output.log"),
        "leave": ("failed", "SystemExit: 3"),
        "refuse": ("failed", "data.root=x: does not exist"),
        "succeed": ("done", None),
    }
    found = run(tmp_path, "succeed", *ends, timeout=2)
    assert [(o.state, o.reason) for o in found] == [("done", None), *ends.values()]
    assert [o.value for o in found if o.state == "done"] == [0.75, 0.75]
    assert all(np.isnan(o.value) for o in found if o.state != "done")
    assert 2 <= found[4].seconds < 3
    assert all(o.seconds < 2 for o in found if o.job.name != "4-hang")
    assert "RuntimeError: there is a reason" in (tmp_path / "1-fail" / "output.log").read_text()


@slow
@pytest.mark.parametrize("work", ["take_memory", "take_tensors"])
def test_a_job_out_of_memory_says_so_and_the_others_finish(tmp_path: Path, work: str) -> None:
    found = run(tmp_path, "take_some_memory", work, "take_some_memory", memory_gb=4)
    assert states(found) == ["done", "failed", "done"]
    assert str(found[1].reason).startswith("out of memory: ")


@slow
def test_less_memory_than_a_process_has_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"hydra.launcher.memory_gb=0.5: .*; give at least \d\.?\d*, or null"):
        Limits(memory_gb=0.5)


@slow
def test_a_process_without_a_sign_of_life_ends(tmp_path: Path) -> None:
    """And a job whose work is silent for longer does not."""
    found = run(tmp_path, "stop", "sleep", n_jobs=2, max_silence=4)
    assert states(found) == ["failed", "done"]
    assert found[0].reason == "its process gave no sign of life for hydra.launcher.max_silence=4 s"


@slow
def test_a_job_that_ends_before_its_run_begins_has_failed(tmp_path: Path) -> None:
    outcome = Outcome(Job("a job", partial(Task, tmp_path, float)))
    ProcessPool().run([outcome], Silent())
    assert (outcome.state, outcome.reason) == ("failed", "its process ended with exit status 0; see output.log")


@slow
def test_after_max_failures_no_further_job_starts(tmp_path: Path) -> None:
    found = run(tmp_path, "succeed", "fail", "die", "succeed", "fail", max_failures=2)
    assert states(found) == ["done", "failed", "failed", "waiting", "waiting"]
    assert not (tmp_path / "3-succeed").exists()
    found = run(tmp_path / "two", "fail", "look_around", "succeed", max_failures=1, n_jobs=2)
    assert states(found) == ["failed", "done", "waiting"]


@slow
def test_failures_and_diverged_jobs_count_over_all_batches(tmp_path: Path) -> None:
    together = ProcessPool(Limits(max_failures=2))
    for number, expected in enumerate(("diverged", "diverged", "waiting")):
        found = outcomes(tmp_path / str(number), "diverge")
        together.run(found, Silent())
        assert states(found) == [expected]


@slow
def test_two_at_a_time_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    before = resource.getrlimit(resource.RLIMIT_AS)
    found = run(tmp_path, *["look_around"] * 4, n_jobs=2, memory_gb=4)
    assert states(found) == ["done"] * 4
    about = [written(tmp_path, o.job.name, "about.json") for o in found]
    slots = Slot.of_machine(2)
    assert {(*a["cores"], a["gpus"]) for a in about} == {(*sorted(s.cores), ",".join(s.gpus)) for s in slots}
    assert {a["gpus"] for a in about} == {"0,1", "2,3"}
    assert all(a["growth"] == "true" for a in about)
    assert all(a["threads"] == len(a["cores"]) for a in about)
    assert all(a["preloaded"] for a in about)
    assert all(a["limit"] == 4 * 2**30 for a in about)
    assert len({a["pid"] for a in about}) == 4, "each in a process of its own"
    spans = [a["span"] for a in about]
    assert max(sum(began <= start < ended for began, ended in spans) for start, _ in spans) == 2, "two at once"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "TF_FORCE_GPU_ALLOW_GROWTH" not in os.environ
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@slow
def test_without_gpus_the_environment_of_jobs_is_unchanged(tmp_path: Path) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")) or "CUDA_VISIBLE_DEVICES" in os.environ:
        pytest.skip("there are some")
    run(tmp_path, "look_around")
    about = written(tmp_path, "0-look_around", "about.json")
    assert (about["gpus"], about["growth"]) == (None, None)
    assert about["cores"] == sorted(os.sched_getaffinity(0))


@slow
def test_a_task_is_made_late_and_its_progress_is_shown(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "succeed", "succeed", "progress_twice")
    asked: list[list[str]] = []

    def asking(task: Callable[[], Task]) -> Task:
        asked.append(states(found))
        return task()

    for outcome in found:
        outcome.job = Job(outcome.job.name, partial(asking, outcome.job.task))
    view = Silent(found)
    ProcessPool(Limits(n_jobs=1)).run(found, view)
    assert asked == [["waiting"] * 3, ["done", "waiting", "waiting"], ["done", "done", "waiting"]]
    assert view.ends == [outcome.job.name for outcome in found]
    assert states(found) == ["done"] * 3
    assert "features 3/12" in view.doings
    assert found[-1].doing == "", "nothing any more"


@slow
def test_a_job_prints_to_its_log_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "speak")
    log = (tmp_path / "0-speak" / "output.log").read_text()
    for line in ("printed\n", "printed as an error\n", "written by C\n", "logged"):
        assert line in log
    printed = capfd.readouterr()
    assert "printed" not in printed.out + printed.err
    run(tmp_path, "speak")
    assert (tmp_path / "0-speak" / "output.log").read_text() == 2 * log, "a second try is added"


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


@slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("work", "before", "reason"),
    [
        (look_on, "running", "another process is at work in its directory"),
        (look_on_and_die, "running", KILLED),
        (hang_before_it_knows, "done", "timeout: it took longer than 3 s"),
        (die, "failed", KILLED),
    ],
)
def test_a_death_leaves_a_done_run_and_that_of_another_process(
    tmp_path: Path, work: Callable[[Path], float], before: RunState, reason: str
) -> None:
    """But a run that failed earlier gets the new reason."""
    with closing(Run.claim(tmp_path)) as other:
        other.set_status(before, "what it was then")
        if before != "running":
            other.close()
        outcome = Outcome(Job("a job", partial(Task, tmp_path, partial(work, tmp_path))))
        ProcessPool(Limits(timeout=3)).run([outcome], Silent())
        assert (outcome.state, outcome.reason) == ("failed", reason)
        status = Run(tmp_path).status
    assert (status["state"], status["pid"]) == (before, os.getpid())
    assert status["reason"] == (reason if before == "failed" else "what it was then")


def print_leak(root: str) -> None:
    """Print how much memory and how many open files thirty jobs leave behind."""

    def held() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize(), len(list(Path("/proc/self/fd").iterdir()))

    run(Path(root, "first"), *["succeed"] * 5, n_jobs=2)
    before = held()
    for number in range(3):
        run(Path(root, str(number)), *["succeed", "fail", "die", "succeed", "succeed"] * 2, n_jobs=2)
    print(*(after - then for after, then in zip(held(), before, strict=True)))  # noqa: T201


def command(function: str, *arguments: object) -> list[str]:
    """Call a function of this module in a new process."""
    code = f"import sys; from tests.sweeps.test_process_pool import {function}; {function}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


@slow
def test_thirty_jobs_leak_no_process_descriptor_or_memory(tmp_path: Path) -> None:
    """In a process of its own: what pytest and all tests before hold would sway more than the jobs."""
    result = subprocess.run(command("print_leak", tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    memory, files = map(int, result.stdout.splitlines()[-1].split())
    assert memory < 4e6
    assert files <= 1


# The process that starts jobs comes to an end itself


def parent(root: str, timeout: str, *names: str) -> None:
    """A process that runs a pool of the jobs of those names, two at a time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = outcomes(Path(root), *names)
    try:
        ProcessPool(Limits(n_jobs=2, timeout=float(timeout))).run(found, Silent())
    except KeyboardInterrupt:
        for outcome in found:
            print(outcome.state, outcome.reason, sep="|")  # noqa: T201
        raise SystemExit(130) from None
    print(json.dumps([[outcome.state, outcome.seconds] for outcome in found]))  # noqa: T201


@contextlib.contextmanager
def started(root: Path, *names: str, timeout: float = 100) -> Iterator[subprocess.Popen[str]]:
    program = command("parent", root, timeout, *names)
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
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
@pytest.mark.parametrize(
    ("work", "interruptions", "seconds"),
    [("hang", 1, pool.GRACE), ("hang_deaf", 1, pool.GRACE + 3), ("hang_deaf", 2, 2)],
)
def test_an_interruption_ends_running_jobs_and_is_recorded(
    tmp_path: Path, work: str, interruptions: int, seconds: float
) -> None:
    """A job that ignores signals is killed, and by a second interruption at once."""
    with started(tmp_path, "succeed", work, work, "succeed") as process:
        pids = at_work(tmp_path, 2)
        for _ in range(interruptions):
            time.sleep(1)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < seconds
    assert gone(pids, 0)
    state, reason = "interrupted", "the sweep was interrupted"
    assert output.splitlines() == ["done|None", *[f"{state}|{reason}"] * 2, "waiting|None"]
    for name in (f"1-{work}", f"2-{work}"):
        status = written(tmp_path, name)
        assert (status["state"], status["reason"]) == (state, reason)
        assert (tmp_path / name / "tidied").exists() == (work == "hang"), "it could end in order"
    assert not (tmp_path / "3-succeed").exists()


@slow
def test_an_interruption_that_the_table_drops_is_not_lost(tmp_path: Path) -> None:
    class Dropping(Silent):
        def refresh(self) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                interrupt()

    found = outcomes(tmp_path, "hang")
    with pytest.raises(KeyboardInterrupt):
        ProcessPool(Limits(n_jobs=1)).run(found, Dropping())
    assert states(found) == ["interrupted"]


def start_and_interrupt(root: str) -> None:
    """Interrupt this process and the server, which then still imports, while a job waits for it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1, os.killpg, (0, signal.SIGINT)).start()
    with contextlib.suppress(KeyboardInterrupt):
        ProcessPool(Limits(n_jobs=1)).run(outcomes(Path(root), "succeed"), Silent())


@slow
def test_an_interruption_while_the_server_starts_is_silent(tmp_path: Path) -> None:
    program = command("start_and_interrupt", tmp_path)
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, start_new_session=True, check=True)
    assert result.stderr == ""


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
def test_a_new_server_takes_no_seconds_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with started(tmp_path / "runs", "succeed", "succeed", "die", timeout=3) as process:
        ended = json.loads(process.communicate(timeout=60)[0])
    assert [state for state, _ in ended] == ["done", "done", "failed"]
    assert max(seconds for _, seconds in ended) < 2.5  # a server takes more to start
    assert list((tmp_path / "tmp").iterdir()) == []
