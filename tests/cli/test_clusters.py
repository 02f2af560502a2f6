"""`hydra/launcher=ray`, `submitit_local` and `submitit_slurm` (cluster_options, remote_task)."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tl_research.config.compose import check_plugins, hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.remote_task import last_status_time, wait_for
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.runs.status import RunState
from tl_research.system.process import importable

pytestmark = pytest.mark.alone

EXTRA = {"ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
PLUGIN = {"ray": "hydra_ray_launcher", "slurm": "hydra_submitit_launcher"}


def needs(launcher: str) -> None:
    extra = EXTRA[launcher]
    if importlib.util.find_spec(f"hydra_plugins.{PLUGIN[extra]}") is None:
        pytest.skip(f'needs an extra: pip install -e ".[{extra}]"')


def checked(*overrides: str) -> None:
    with hydra() as composer:
        check_plugins(compose_config(composer, overrides))


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", EXTRA)
def test_our_launcher_config_wins_over_the_plugins(launcher: str) -> None:
    with hydra() as composer:
        config = compose_config(composer, [f"hydra/launcher={launcher}"]).hydra.launcher
    ours = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / f"{launcher}.yaml")
    assert OmegaConf.merge(config, ours) == config


HIDDEN = """
import pkgutil, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({names}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
walk = pkgutil.walk_packages
pkgutil.walk_packages = lambda *a, **k: (m for m in walk(*a, **k) if not m.name.startswith({names}))
"""


@pytest.mark.parametrize("launcher", EXTRA)
def test_an_extra_that_is_missing_is_one_line_that_names_it(tmp_path: Path, colours: Path, launcher: str) -> None:
    names = tuple(f"hydra_plugins.{plugin}" for plugin in PLUGIN.values())
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(names=names))
    cwd = tmp_path / "work"
    cwd.mkdir()
    own = {"submitit_slurm": ["hydra.launcher.qos=long"]}.get(launcher, [])  # which the plugin alone knows
    result = train(cwd, launcher, f"data.root={colours}", *own, PYTHONPATH=str(tmp_path)).result()
    assert result.returncode == 2
    assert (result.stdout + result.stderr).splitlines() == [
        f'hydra/launcher={launcher} is an extra that is not installed: pip install "tl_research[{EXTRA[launcher]}]"'
    ]
    assert not list(cwd.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ray", "ray.remote.num_cpus=0"], "hydra.launcher.ray.remote.num_cpus=0: should be a number greater than 0"),
        (["ray", "ray.init.address=auto", "ray.init.num_cpus=2"], "hydra.launcher.ray.init.num_cpus=2: the Ray at an"),
        (["ray", "ray.init.address=127.0.0.1:9"], "hydra.launcher.ray.init.address=127.0.0.1:9: no Ray answers there"),
        (["ray", "ray.init.adress=auto"], "nearest: hydra.launcher.ray.init.address"),
        (["submitit_local", "timeout_min=0"], "hydra.launcher.timeout_min=0: should be a whole number of at least 1"),
        (["submitit_local", "nodes=2"], "hydra.launcher.nodes=2"),
        (["submitit_slurm", "partion=gpu"], "nearest: hydra.launcher.partition"),
        (["submitit_slurm", "timeout_min=long"], "hydra.launcher.timeout_min"),
        (["submitit_slurm"], "hydra/launcher=submitit_slurm: there is no Slurm here (no srun on the PATH)"),
    ],
)
def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str) -> None:
    needs(overrides[0])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError) as caught:
        checked(f"hydra/launcher={overrides[0]}", *(f"hydra.launcher.{override}" for override in overrides[1:]))
    assert message in str(caught.value)
    assert "hydra.launcher.hydra" not in str(caught.value), "the key is named once"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("launcher", ["ray", "submitit_local"])
def test_the_shipped_options_are_valid(launcher: str) -> None:
    needs(launcher)
    checked(f"hydra/launcher={launcher}")


def test_the_keys_reach_the_script_for_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the script that sbatch would get: there is no Slurm here to run it."""
    needs("submitit_slurm")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    overrides = ["hydra/launcher=submitit_slurm", f"hydra.sweep.dir={tmp_path}", "hydra.launcher.partition=gpu"]
    keys = [
        "gpus_per_node=1",
        "mem_gb=16",
        "timeout_min=90",
        "setup=[module load cuda]",
        "+additional_parameters.qos=x",
    ]
    overrides += [f"+hydra.launcher.{k[1:]}" if k[0] == "+" else f"hydra.launcher.{k}" for k in keys]
    checked(*overrides)
    with hydra() as composer:
        config = compose_config(composer, overrides)
    launcher = instantiate(config.hydra.launcher)
    script = launcher.executor()._executor._make_submission_file_text("python job", "one")
    asked = set(script.splitlines())
    lines = ["partition=gpu", "gpus-per-node=1", "mem=16GB", "time=90", "cpus-per-task=4", "nodes=1", "qos=x"]
    assert {f"#SBATCH --{line}" for line in lines} <= asked
    assert "module load cuda" in asked


# What a launcher learns of a job


def dies() -> JobReturn:
    raise RuntimeError("The worker died unexpectedly.\nMore of it.")


def test_a_dead_process_fails_its_job_only(tmp_path: Path) -> None:
    returned = wait_for(dies, ["seed=0"], tmp_path / "never begun", 0)
    assert math.isnan(returned.return_value)
    status = Run.open(tmp_path / "never begun").status
    assert (status["state"], status["reason"]) == ("failed", "its process died: The worker died unexpectedly.")


def ended(directory: Path, state: RunState) -> None:
    run = Run.claim(directory)
    run.set_status(state, "by itself")
    run.close()


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_status_recorded_by_the_job_stays(tmp_path: Path, state: RunState) -> None:
    ended(tmp_path, state)
    wait_for(dies, [], tmp_path, before=0)
    assert Run.open(tmp_path).status["reason"] == "by itself"


def test_a_done_run_stays_done(tmp_path: Path) -> None:
    ended(tmp_path, "done")
    returned = wait_for(dies, [], tmp_path, before=last_status_time(tmp_path))
    assert math.isnan(returned.return_value)
    assert Run.open(tmp_path).status["state"] == "done"


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_status_of_an_earlier_process_is_replaced(tmp_path: Path, state: RunState) -> None:
    ended(tmp_path, state)
    wait_for(dies, [], tmp_path, before=last_status_time(tmp_path))
    status = Run.open(tmp_path).status
    assert (status["state"], status["reason"]) == ("failed", "its process died: The worker died unexpectedly.")


def test_a_run_in_use_is_left_alone(tmp_path: Path) -> None:
    at_work = Run.claim(tmp_path)
    for before in (0, last_status_time(tmp_path)):
        wait_for(dies, [], tmp_path, before)
        assert Run.open(tmp_path).status["state"] == "running"
    at_work.close()


def test_an_exception_of_a_job_is_recorded(tmp_path: Path) -> None:
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = OSError("no such folder")
    assert math.isnan(wait_for(lambda: returned, [], tmp_path, 0).return_value)
    assert Run.open(tmp_path).status["reason"] == "its process died: no such folder"


# What a job finds ----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from types import SimpleNamespace as Space
from omegaconf import OmegaConf
from tl_research.config import remote_task

def task(cfg):
    from tl_research.backend.start import start_backend
    print("in", __import__("os").getcwd(), "with", cfg.threads, start_backend(cfg.threads))
    return 0.5

remote_task.HydraConfig.get = lambda: Space(runtime=Space(output_dir=sys.argv[2]))
remote = remote_task.RemoteTask(task, cwd=sys.argv[1], threads=3)
assert remote(OmegaConf.create({"threads": None})) == 0.5
"""


@pytest.mark.slow
def test_a_job_has_the_sweeps_folder_its_threads_and_its_log(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cwd"), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == ""
    lines = (tmp_path / "output.log").read_text().splitlines()
    assert lines == [f"in {tmp_path / 'cwd'} with None 3"], "its configuration is that of any other launcher"


TERMINATED = """
import os, signal, sys
from types import SimpleNamespace as Space
from omegaconf import OmegaConf
from tl_research.config import remote_task

remote_task.HydraConfig.get = lambda: Space(runtime=Space(output_dir=sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as a worker of Ray's does
remote = remote_task.RemoteTask(lambda cfg: os.kill(os.getpid(), signal.SIGTERM), sys.argv[1], 1, heeds_sigterm=True)
try:
    remote(OmegaConf.create({"threads": None}))
except KeyboardInterrupt:
    os.write(2, b"interrupted")
assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"
"""


def test_a_job_that_ray_ends_is_interrupted_and_has_not_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "interrupted" in result.stderr + (tmp_path / "output.log").read_text()


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_importable_reaches_child_processes(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before:
        monkeypatch.setenv("PYTHONPATH", before)
    with importable():
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), *([before] if before else [])]
    assert os.environ.get("PYTHONPATH") == before


# Sweeps, from outside -------------------------------------------------------------------------------------------------


class Sweep:
    """A sweep under way, and its folder."""

    def __init__(self, cwd: Path, command: list[str], environment: dict[str, str]):
        self.cwd = cwd
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def folder(self) -> Path:
        (folder,) = (self.cwd / "outputs" / "sweeps").iterdir()
        return folder

    def statuses(self) -> dict[str, dict[str, str]]:
        """Of each job, by the value it was given for what is swept."""
        paths = self.folder.glob("*/status.json")
        return {path.parent.name: Run.open(path.parent).status for path in paths}

    def result(self) -> subprocess.CompletedProcess[str]:
        try:
            out, err = self.process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


def train(cwd: Path, launcher: str, *arguments: str, **environment: str) -> Sweep:
    """`python train.py -m` on two cores, from a folder that is not the clone's, with a home of its own."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    env = {**os.environ, "HOME": str(home), **environment}
    env.pop("PYTHONWARNINGS", None)
    if launcher == "ray":
        arguments = ("hydra.launcher.ray.init.num_cpus=2", *arguments) if "PYTHONPATH" not in environment else arguments
    tiny = ["backbone=tiny", "backbone.image_size=32", "data=folder", "callbacks=none"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"hydra/launcher={launcher}", *tiny, *arguments]
    return Sweep(cwd, command, env)


@pytest.fixture
def cwd(tmp_path: Path, colours: Path) -> Path:
    """A folder to work in, with the photographs beside it."""
    (tmp_path / "photos").symlink_to(colours)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture(params=["ray", "submitit_local"])
def launcher(request: pytest.FixtureRequest) -> Iterator[str]:
    needs(request.param)
    return request.param


def metrics(sweep: Sweep) -> dict[str, dict[str, float]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.folder.glob("*/metrics.json")}


@pytest.mark.slow
def test_a_sweep_is_done_once_and_images_are_seen_once(cwd: Path, launcher: str) -> None:
    sweep = train(cwd, launcher, "data.root=../photos", "seed=0,1,2")
    result = sweep.result()
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert len(result.stderr.splitlines()) <= 4, result.stderr  # one a job
    assert [status["state"] for status in sweep.statuses().values()] == ["done"] * 3
    assert "3 done" in result.stdout
    assert (sweep.folder / "leaderboard.csv").read_text().count("\n") == 2
    found = metrics(sweep)
    assert sum(job["features_computed"] for job in found.values()) == 36
    assert sum(job["features_hit"] for job in found.values()) == 2 * 36
    assert {job["threads"] for job in found.values()} == {1}  # as many as it has cores
    for name in found:
        assert "results" in (sweep.folder / name / "output.log").read_text()
    assert {path.name for path in cwd.iterdir()} == {"outputs"}

    before = {path: path.stat().st_mtime_ns for path in sweep.folder.glob("*/metrics.json")}
    again = train(cwd, launcher, "data.root=../photos", "seed=0,1,2")
    assert again.result().returncode == 0
    assert {path: path.stat().st_mtime_ns for path in again.folder.glob("*/metrics.json")} == before


@pytest.mark.slow
def test_a_failed_job_is_reported_and_the_others_finish(cwd: Path, launcher: str) -> None:
    (cwd / "broken.weights.h5").write_bytes(b"not HDF5")
    sweep = train(cwd, launcher, "data.root=../photos", "backbone.weights=broken.weights.h5,null")
    result = sweep.result()
    assert result.returncode == 1, result.stderr
    statuses = sweep.statuses()
    assert sorted(status["state"] for status in statuses.values()) == ["done", "failed"]
    (status,) = [status for status in statuses.values() if status["state"] == "failed"]
    assert "broken.weights.h5" in status["reason"]
    assert f": failed: {status['reason']}\n" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_killed_job_is_reported_and_completed_next_time(cwd: Path, launcher: str) -> None:
    arguments = ["data.root=../photos", "seed=0,1,2", "optimizer=adam", "transfer=finetune"]
    epochs = "transfer.backbone.epochs"
    sweep = train(cwd, launcher, *arguments, f"{epochs}=5")
    victim = None
    deadline = time.monotonic() + 120
    while victim is None and time.monotonic() < deadline and sweep.process.poll() is None:
        time.sleep(0.05)
        if (cwd / "outputs" / "sweeps").is_dir():
            started = [n for n, s in sweep.statuses().items() if s["state"] == "running" and s["identity"]]
            victim = min(started, default=None)
    assert victim is not None, sweep.result().stderr
    os.kill(int(sweep.statuses()[victim]["pid"]), signal.SIGKILL)
    result = sweep.result()
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    statuses = sweep.statuses()
    assert statuses[victim]["state"] == "failed"
    assert "its process died" in statuses[victim]["reason"]
    assert f": failed: {statuses[victim]['reason']}\n" in result.stderr
    assert [s["state"] for n, s in statuses.items() if n != victim] == ["done", "done"]
    assert "1 failed" in result.stdout

    again = train(cwd, launcher, *arguments, f"{epochs}=5")
    assert again.result().returncode == 0
    assert [status["state"] for status in again.statuses().values()] == ["done"] * 3


@pytest.mark.slow
def test_an_interruption_ends_the_jobs(cwd: Path, launcher: str) -> None:
    sweep = train(cwd, launcher, "data.root=../photos", "seed=0,1", "optimizer=adam", "transfer=finetune",
                  "transfer.backbone.epochs=10000")  # fmt: skip
    deadline = time.monotonic() + 120
    pids: set[int] = set()
    while len(pids) < 2 and time.monotonic() < deadline and sweep.process.poll() is None:
        time.sleep(0.1)
        if (cwd / "outputs" / "sweeps").is_dir():
            pids = {int(s["pid"]) for s in sweep.statuses().values() if s["state"] == "running"}
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.result().returncode == 130
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert {status["state"] for status in sweep.statuses().values()} == {"interrupted"}
