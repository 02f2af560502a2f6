"""Sweeps as processes: however a job ends, the others finish, and the same command completes the rest."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.cli.test_train import refused, train
from tests.conftest import ROOT, draw_tree

pytestmark = [pytest.mark.slow, pytest.mark.alone]

FAULTS = '''
"""Networks some of which are no good, as long as there is no file `mended` here."""

import ctypes
import os
import signal
import time
from pathlib import Path

from tl_research.models.networks.tiny import Tiny

MENDED = Path(__file__).with_name("mended")


def fine(**options):
    return Tiny(**options)


def raises(**options):
    if not MENDED.exists():
        raise ValueError("it broke")
    return Tiny(**options)


def dies(**options):
    if not MENDED.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return Tiny(**options)


def hangs(**options):
    if not MENDED.exists():
        time.sleep(300)
    return Tiny(**options)


def hungry(**options):
    if not MENDED.exists():
        allocate = ctypes.CDLL("libstdc++.so.6")["_Znwm"]
        allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        for _ in range(1000):
            allocate(2**28)
    return Tiny(**options)
'''


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes that are hard enough to tell apart for seeds to differ."""
    root = draw_tree(tmp_path / "photos", {"train/red": 16, "train/blue": 16, "test/red": 8, "test/blue": 8})
    for split, count in (("train", 5), ("test", 3)):
        for name, other in (("red", "blue"), ("blue", "red")):
            for number in range(count):
                with Image.open(root / split / other / f"{number:03d}.jpg") as image:  # not equal
                    ImageOps.mirror(image).save(root / split / name / f"as_{number}.jpg")
    return root


@pytest.fixture
def tiny(photos: Path) -> list[str]:
    return ["-m", "backbone.image_size=32", "data=folder", f"data.root={photos}", "callbacks=none", "threads=1"]


def statuses(cwd: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(cwd.glob("outputs/sweeps/*/*/status.json"))]


def states(cwd: Path) -> list[str]:
    return [status["state"] for status in statuses(cwd)]


def sweeps(cwd: Path) -> list[str]:
    return sorted(path.name for path in cwd.glob("outputs/sweeps/*"))


def written(cwd: Path) -> dict[str, int]:
    """When the metrics of each job were written."""
    return {
        "/".join(path.parts[-3:-1]): path.stat().st_mtime_ns for path in cwd.glob("outputs/sweeps/*/*/metrics.json")
    }


def board(cwd: Path) -> list[dict[str, str]]:
    """The leaderboard without what may differ from one time to the next."""
    (path,) = cwd.glob("outputs/sweeps/*/leaderboard.csv")
    with path.open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "features_computed", "directory")}
            for row in csv.DictReader(file)
        ]


def metrics(cwd: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(cwd.glob("outputs/sweeps/*/*/metrics.json"))]
    history = ("seconds", "features", "version", "resumed_at_epoch")  # how a run came to its numbers
    return [{k: v for k, v in one.items() if not k.startswith(history)} for one in found]


@contextmanager
def started(cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a session of its own, as in a terminal of its own."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background has it ignored
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


# Jobs that come to a bad end


def test_the_same_command_completes_jobs_that_ended_badly(cwd: Path, tiny: list[str]) -> None:
    (cwd / "faults.py").write_text(FAULTS)
    kinds = ["raises", "fine", "dies", "hangs", "hungry", "fine"]
    command = [*tiny, "backbone=custom", f"backbone.build={','.join(f'faults:{kind}' for kind in kinds[:5])}", "seed=0"]
    limits = ["hydra.launcher.timeout=15", "hydra.launcher.memory_gb=8"]
    result = train(cwd, *command, *limits)
    assert result.returncode == 1, result.stderr
    assert sorted(states(cwd)) == ["done", *["failed"] * 4]
    reasons = {status["reason"] for status in statuses(cwd) if status["reason"]}
    for message in ("it broke", "killed by SIGKILL", "timeout: it took longer than 15 s",
                 "out of memory: "):  # fmt: skip
        (reason,) = [reason for reason in reasons if message in reason]
        lines = [line for line in result.stderr.splitlines()[-4:] if reason in line]
        assert len(lines) == 1, result.stderr
        assert ": failed: " in lines[0]
        assert reason in next(cwd.glob("outputs/sweeps/*/leaderboard.md")).read_text()
    assert "Traceback" not in result.stderr
    before = written(cwd)
    assert len(before) == 1
    again = train(cwd, *command, *limits)
    assert again.returncode == 1
    assert written(cwd) == before, "what failed is tried again, what is done is not"
    assert "] kept  " in again.stderr
    (cwd / "mended").touch()
    mended = train(cwd, *command)
    assert mended.returncode == 0, mended.stderr
    assert states(cwd) == ["done"] * 5
    assert before.items() <= written(cwd).items()
    assert len(written(cwd)) == 5
    assert len({row["val_accuracy"] for row in board(cwd)}) == 1


def test_after_max_failures_the_rest_waits_for_a_repetition(cwd: Path, tiny: list[str]) -> None:
    (cwd / "faults.py").write_text(FAULTS)
    command = [*tiny, "backbone=custom", "backbone.build=faults:raises,faults:dies,faults:fine"]
    result = train(cwd, *command, "hydra.launcher.max_failures=1", "hydra.launcher.n_jobs=1")
    assert result.returncode == 1
    assert states(cwd) == ["failed"]
    assert "2 job(s) not started: hydra.launcher.max_failures=1" in result.stderr


# A sweep that comes to an end before its time


@pytest.mark.parametrize("seed", range(2))
def test_a_sweep_that_is_killed_is_completed_by_the_same_command(
    cwd: Path, tmp_path: Path, tiny: list[str], seed: int
) -> None:
    whole = tmp_path / "whole" / "work"
    whole.mkdir(parents=True)
    command = [*tiny, "backbone=tiny", "seed=0,1,2", "head=linear,mlp", "transfer.head.epochs=3"]
    assert train(whole, *command).returncode == 0
    chance = random.Random(seed)
    for _ in range(3):
        done = states(cwd).count("done")
        with started(cwd, *command) as process:
            until(lambda: "running" in states(cwd) or process.poll() is not None)
            time.sleep(chance.random() * 1.5)
            process.kill()
            process.wait()
        assert states(cwd).count("done") >= done
    before = written(cwd)
    finished = {"/".join(path.parts[-3:-1]) for path in cwd.glob("outputs/sweeps/*/*/model.keras")}
    result = train(cwd, *command)
    assert result.returncode == 0, result.stderr
    assert states(cwd) == ["done"] * 6
    kept = {name for name, at in written(cwd).items() if before.get(name) == at}
    assert kept <= finished
    assert board(cwd) == board(whole)
    assert metrics(cwd) == metrics(whole)


@pytest.mark.parametrize("everybody", [True, False], ids=["Ctrl-C", "SIGTERM to one"])
def test_an_interruption_is_recorded_and_continued_from(cwd: Path, tiny: list[str], everybody: bool) -> None:
    (cwd / "faults.py").write_text(FAULTS)
    command = [
        *tiny,
        "backbone=custom",
        "backbone.build=faults:fine,faults:hangs,faults:dies",
        "hydra.launcher.n_jobs=1",
    ]
    with started(cwd, *command) as process:
        until(lambda: sorted(states(cwd)) == ["done", "running"])
        time.sleep(0.3)
        if everybody:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert message.splitlines()[-1].startswith("interrupted; the same command goes on from here: outputs/sweeps/")
    assert "Traceback" not in message
    assert sorted(states(cwd)) == ["done", "interrupted"]
    assert len(board(cwd)) == 2, "there is a leaderboard of what there is"
    before = written(cwd)
    (cwd / "mended").touch()
    assert train(cwd, *command).returncode == 0
    assert states(cwd) == ["done"] * 3
    assert before.items() <= written(cwd).items()


# The same command, and another


def test_overrides_in_any_order_find_the_same_jobs(cwd: Path, tiny: list[str]) -> None:
    command = [*tiny, "backbone=tiny", "seed=0,1"]
    assert train(cwd, *command).returncode == 0
    before = written(cwd)
    for other in (command, [*reversed(command[1:]), "-m"], [*command, "hydra.launcher.n_jobs=2"]):
        result = train(cwd, *other)
        assert result.returncode == 0, result.stderr
        assert "leaderboard by val_accuracy" in result.stdout
        assert written(cwd) == before
    assert len(sweeps(cwd)) == 1
    assert train(cwd, *command[:-1], "seed=0,2").returncode == 0
    assert len(sweeps(cwd)) == 2
    assert before.items() <= written(cwd).items()


def test_changed_jobs_run_again_and_fresh_runs_all(cwd: Path, photos: Path, tiny: list[str]) -> None:
    command = [*tiny, "backbone=tiny", "seed=0,1"]
    assert train(cwd, *command).returncode == 0
    before = written(cwd)
    (photos / "train" / "red" / "000.jpg").write_bytes((photos / "train" / "red" / "001.jpg").read_bytes())
    assert train(cwd, *command).returncode == 0
    changed = written(cwd)
    assert changed.keys() == before.keys()
    assert all(changed[name] > before[name] for name in before)
    assert train(cwd, *command).returncode == 0
    assert written(cwd) == changed
    assert train(cwd, *command, "fresh=true").returncode == 0
    assert written(cwd).keys() == before.keys(), "in the same folders"
    assert all(written(cwd)[name] > changed[name] for name in before)
    assert len(sweeps(cwd)) == 1


def test_a_second_sweep_in_one_folder_is_refused(cwd: Path, tiny: list[str]) -> None:
    (cwd / "faults.py").write_text(FAULTS)
    command = [*tiny, "backbone=custom", "backbone.build=faults:hangs,faults:fine", "hydra.launcher.n_jobs=1"]
    with started(cwd, *command) as first:
        until(lambda: "running" in states(cwd))
        second = train(cwd, *command)
        assert second.returncode == 2
        (line,) = (second.stdout + second.stderr).strip().splitlines()
        assert sweeps(cwd)[0] in line
        assert "another sweep is at work in it" in line
        assert states(cwd) == ["running"], "and nothing has happened to the first"
        assert first.poll() is None


def test_parallel_jobs_give_the_same_results(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    other = tmp_path / "other" / "work"
    other.mkdir(parents=True)
    command = [*tiny, "backbone=tiny", "seed=0,1", "transfer=frozen,finetune", "transfer.head.epochs=2"]
    assert train(cwd, *command, "hydra.launcher.n_jobs=1").returncode == 0
    assert train(other, *command, "hydra.launcher.n_jobs=2").returncode == 0
    assert len(metrics(cwd)) == 4
    assert metrics(other) == metrics(cwd)
    assert board(other) == board(cwd)


def test_hydras_own_launcher_gives_the_same_results(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    other = tmp_path / "other" / "work"
    other.mkdir(parents=True)
    command = [*tiny, "backbone=tiny", "seed=0,1"]
    assert train(cwd, *command, "hydra/launcher=basic").returncode == 0
    assert train(other, *command).returncode == 0
    assert metrics(other) == metrics(cwd)
    before = written(cwd)
    assert train(cwd, *command).returncode == 0
    assert written(cwd) == before, "and each finds what the other has done"


# What is not there


OFFLINE = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9") | {"NO_PROXY": "", "no_proxy": ""}


def test_jobs_without_weights_are_skipped_and_no_failure(cwd: Path, tiny: list[str]) -> None:
    result = train(cwd, *tiny, "backbone=tiny,mobilenet_v2", environment=OFFLINE)
    assert result.returncode == 0, result.stderr
    assert sorted(states(cwd)) == ["done", "skipped"]
    (reason,) = [status["reason"] for status in statuses(cwd) if status["state"] == "skipped"]
    assert reason.startswith("no weights: ")
    for text in (result.stderr.splitlines()[-1], next(cwd.glob("outputs/sweeps/*/leaderboard.md")).read_text()):
        assert f"skipped: {reason}" in text
    assert any(row["status"].startswith("1 skipped") and row["rank"] == "" for row in board(cwd))


def test_if_no_job_can_run_all_reasons_are_reported(cwd: Path, tiny: list[str]) -> None:
    result = train(cwd, *tiny, "backbone=mobilenet_v2,resnet50", environment=OFFLINE)
    assert result.returncode == 2
    lines = (result.stdout + result.stderr).strip().splitlines()
    assert len(lines) == 2
    assert "mobilenet_v2" in lines[0]
    assert "resnet50" in lines[1]
    assert not list(cwd.iterdir())


# What is refused before anything is made


def test_a_limit_out_of_range_is_one_line(cwd: Path, tiny: list[str]) -> None:
    line = refused(train(cwd, *tiny, "backbone=tiny", "seed=0,1", "hydra.launcher.n_jobs=0"), cwd)
    assert "hydra.launcher.n_jobs=0: should be a whole number of at least 1 or null" in line


def test_a_launcher_chosen_by_one_job_is_refused(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    experiment = "# @package _global_\ndefaults:\n  - override /hydra/launcher: basic\n"
    (tmp_path / "own" / "experiment" / "odd.yaml").write_text(experiment)
    (tmp_path / "own" / "experiment" / "even.yaml").write_text("# @package _global_\nseed: 1\n")
    result = train(cwd, *tiny, "backbone=tiny", "experiment=even,odd", "--config-dir", str(tmp_path / "own"))
    line = refused(result, cwd)
    assert "hydra/launcher=basic" in line
    assert "on the command line" in line
