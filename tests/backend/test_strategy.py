"""Several devices and machines give the results of one device, and a lost worker is named.

Numbers are compared to 1e-5: the same sums, in another order. Covers `config.secondary_worker`, too.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.config.test_entry import Door, door  # noqa: F401 - a fixture
from tests.conftest import ROOT, draw_noise
from tl_research import InputError, Run, compose
from tl_research.backend import workers as cluster
from tl_research.backend.strategy import sync_batch_norm
from tl_research.backend.workers import is_listening, wait_for_workers
from tl_research.models.classifier import build_classifier

pytestmark = pytest.mark.alone

CLOSE = 1e-5
MULTI = "trainer.distribution=multi_worker"
SMALL = ["backbone=tiny", "backbone.image_size=32", "data=folder", "optimizer=sgd", "transfer=finetune_all",
         "transfer.head.epochs=2", "transfer.backbone.learning_rate=1e-2", "bn=train", "trainer.batch_size=5",
         "trainer.accumulate=2", "trainer.clip_norm=1", "trainer.ema=0.9"]  # fmt: skip


def tf_config(workers: list[str], index: int, kind: str = "worker") -> str:
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": kind, "index": index}})


GOOD = tf_config(["127.0.0.1:1234", "127.0.0.1:1235"], 0)

# Refusals


@pytest.mark.parametrize(
    "config",
    [
        None,
        "garbage",
        "[]",
        tf_config(["127.0.0.1:1234"], 1),
        tf_config(["127.0.0.1"], 0),
        tf_config(["127.0.0.1:99999"], 0),
        tf_config(["127.0.0.1:1234"], 0, "chief"),
        json.dumps({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_worker_needs_a_valid_tf_config(
    door: Door,  # noqa: F811
    tmp_path: Path,
    colours: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str | None,
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    status, lines = door(*SMALL, f"data.root={colours}", MULTI)
    assert (status, len(lines)) == (2, 1)
    assert "multi_worker: each worker needs the environment variable TF_CONFIG, such as {" in lines[0]
    assert config is None or lines[0].endswith(f"; it is {config}")
    assert not list(tmp_path.iterdir())


def test_multi_worker_refuses_sweeps(
    door: Door,  # noqa: F811
    tmp_path: Path,
    colours: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TF_CONFIG", GOOD)
    status, lines = door(*SMALL, f"data.root={colours}", MULTI, "-m", "seed=0,1")
    assert (status, lines) == (2, ["trainer.distribution=multi_worker is for one run at a time; leave out -m"])
    assert not list(tmp_path.iterdir())


def test_missing_workers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there, missing, own = addresses(3)
    monkeypatch.setenv("TF_CONFIG", tf_config([there, own, missing], 1))
    monkeypatch.setattr(cluster, "MOST_WAITING", 0.1)
    with socket.create_server(("127.0.0.1", port(there))):
        with pytest.raises(InputError, match=f"no sign of {missing} within"):
            wait_for_workers()
        with socket.create_server(("127.0.0.1", port(missing))):
            wait_for_workers()
    with socket.create_server(("", port(own))), pytest.raises(InputError, match=r"worker 1 cannot listen at .*in use"):
        wait_for_workers()


# One machine


def test_a_mirrored_run_equals_one_without_strategy(tmp_path: Path, colours: Path) -> None:
    """On the one device of this process."""
    overrides = ["backbone=tiny", "data=folder", f"data.root={colours}", "optimizer=sgd", "transfer.head.epochs=2",
                 "callbacks=none"]  # fmt: skip
    one, other = (
        compose([*overrides, f"trainer.distribution={name}"]).run(tmp_path / name) for name in ("none", "mirrored")
    )
    same(one, other)


def test_networks_side_by_side_normalize_by_the_whole_batch() -> None:
    experiment = compose(["backbone=combined", "backbone.parts=tiny+tiny@32"])
    backbone = experiment.backbone.build()
    classifier = build_classifier(backbone, experiment.head.build(backbone.output_shape[-1], 2))
    layers = [layer for layer in classifier._flatten_layers() if hasattr(layer, "synchronized")]
    strategy: Any = object()
    with sync_batch_norm(strategy, classifier):
        assert len(layers) > 1
        assert all(layer.synchronized for layer in layers)
    assert not any(layer.synchronized for layer in layers)


@pytest.mark.slow
def test_two_devices_make_the_updates_of_one() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.mirrored", "steps"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    apart = json.loads(result.stdout)
    assert apart.pop("each by its own share") > 1e-2  # that it matters
    assert max(apart.values()) < CLOSE, apart


@pytest.mark.slow
def test_a_run_on_two_devices_equals_one_device(tmp_path: Path, noise: Path) -> None:
    overrides = [*SMALL, f"data.root={noise}", "transfer.backbone.epochs=3", "head=mlp", "head.dropout=0"]
    one = compose(overrides).run(tmp_path / "one")
    command = [sys.executable, "-m", "tests.support.mirrored", "run", str(tmp_path / "two"), *overrides]
    result = subprocess.run(
        [*command, "trainer.distribution=mirrored"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    same(one, Run.open(tmp_path / "two"))


# Several machines, simulated by processes


@pytest.mark.slow
def test_two_workers_equal_one(workers: Workers, noise: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.root={noise}", "transfer.backbone.epochs=3"]
    workers.start(0, [], *overrides, "hydra.run.dir=one")
    assert workers.end(0)[0] == 0
    both = addresses(2)
    for number in (0, 1):  # the first finds features that the second has to compute
        workers.start(number, both, *overrides, MULTI, "hydra.run.dir=two")
    (first, shown), (second, silence) = workers.end(0), workers.end(1)
    assert (first, second) == (0, 0), shown + silence
    assert "results" in shown
    assert silence == ""
    same(Run.open(tmp_path / "one"), Run.open(tmp_path / "two"))
    assert workers.left() == ["one", "two"]


@pytest.mark.slow
def test_workers_with_different_jobs_are_refused(workers: Workers, noise: Path) -> None:
    both = addresses(2)
    for number in (0, 1):
        workers.start(number, both, *SMALL, f"data.root={noise}", MULTI, f"seed={number}")
    (first, shown), (second, line) = workers.end(0), workers.end(1)
    assert (first, second) == (2, 2)
    wrong = f"{MULTI}: worker 1 was given other overrides, images, weights or code than worker 0"
    assert shown.splitlines()[-1].startswith(wrong)
    assert line.startswith(f"worker 1: {wrong}")
    assert len(line.splitlines()) == 1
    assert workers.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_resumes_after_a_lost_worker(workers: Workers, noise: Path, tmp_path: Path, victim: int) -> None:
    long = ["transfer.backbone.epochs=100", "transfer.backbone.learning_rate=1e-4", "callbacks=none"]
    overrides = [*SMALL, f"data.root={noise}", *long]
    both = addresses(2)
    started = [workers.start(number, both, *overrides, MULTI, "hydra.run.dir=run") for number in (0, 1)]
    run = tmp_path / "run"
    wait(lambda: (run / "history.csv").exists() and len(history(run)) > 4)
    started[victim].kill()
    began = time.monotonic()
    status, text = workers.end(1 - victim)
    assert status == 1
    assert time.monotonic() - began < 60
    assert text.splitlines()[-1].removeprefix("worker 1: ").startswith(f"worker {victim} ({both[victim]}) has ended")
    assert victim == 1 or len(text.splitlines()) == 1
    assert Run.open(run).status["state"] == ("interrupted" if victim == 0 else "failed")
    workers.end(victim)

    both = addresses(2)
    for number in (0, 1):
        workers.start(number, both, "resume=run")
    assert [workers.end(number)[0] for number in (0, 1)] == [0, 0]
    resumed = Run.open(run)
    assert resumed.metrics["resumed_at_epoch"] >= 4
    assert resumed.status["state"] == "done"
    workers.start(0, [], *overrides, "hydra.run.dir=one")
    assert workers.end(0)[0] == 0
    same(Run.open(tmp_path / "one"), resumed, 1e-4)  # over a hundred epochs differences grow


@pytest.mark.slow
def test_ctrl_c_ends_waiting_for_workers(workers: Workers, noise: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        both = addresses(2)
        started = workers.start(number, both, *SMALL, f"data.root={noise}", MULTI, "hydra.run.dir=run")
        wait(lambda: is_listening(both[number]))  # noqa: B023
        started.send_signal(signal.SIGINT)
        began = time.monotonic()
        status, text = workers.end(number)
        assert time.monotonic() - began < 10
        assert (status, text.splitlines()[-1].partition(";")[0]) == (130, "interrupted")
    assert workers.left() == ["run"]
    assert Run.open(tmp_path / "run").status["state"] == "interrupted"


class Workers:
    """Processes of `python train.py` in one folder, each with a cache and a place for temporary files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, ExitStack()
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, number: int, among: list[str], *overrides: str) -> subprocess.Popen[str]:
        """Start worker `number` of those at these addresses; without addresses, one that runs alone."""
        temporary = self.folder / f".temporary{number}"
        temporary.mkdir(exist_ok=True)
        own = {"TL_CACHE": str(self.folder / f".cache{number}"), "TMPDIR": str(temporary)}
        own |= {"TF_CONFIG": tf_config(among, number)} if among else {}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *overrides], cwd=self.folder, env=os.environ | own, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.running.callback(process.communicate)
        self.running.callback(process.kill)
        self._processes[number] = process
        return process

    def end(self, number: int) -> tuple[int, str]:
        """Wait for a worker; return its exit status and output."""
        text, _ = self._processes[number].communicate(timeout=240)
        return self._processes[number].returncode, text

    def left(self) -> list[str]:
        """List the files that the runs have left, temporary files too."""
        paths = [*self.folder.iterdir(), *self.folder.glob(".temporary*/*")]
        return sorted(path.name for path in paths if not path.name.startswith("."))


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    with started.running:
        yield started


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("noise"), ("train", "test"), 12)


def addresses(count: int) -> list[str]:
    """Return free addresses on the loopback device."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def wait(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def same(one: Run, other: Run, close: float = CLOSE) -> None:
    """Compare history, metrics and weights of two runs, except for times."""
    rows = [[{**row, "seconds": 0, "data_wait": 0} for row in history(run.directory)] for run in (one, other)]
    assert len(rows[0]) == len(rows[1])
    for a, b in zip(*rows, strict=True):
        assert numbers(a) == pytest.approx(numbers(b), abs=close)
    metrics = [
        numbers({k: v for k, v in run.metrics.items() if k.startswith(("val_", "test_", "num_"))})
        for run in (one, other)
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=close)
    for a, b in zip(one.model().get_weights(), other.model().get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=close)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Convert to numbers, without metrics that jump when rounding swaps two nearly equal answers."""
    jump = ("accuracy", "auroc", "f1", "ece", "recall", "majority")
    return {key: float(value) for key, value in row.items() if key != "stage" and not any(j in key for j in jump)}
