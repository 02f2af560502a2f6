"""The door, from outside: `python train.py ...` as a user types it."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, draw_tree

Result = subprocess.CompletedProcess[str]


def train(cwd: Path, *arguments: str, environment: dict[str, str] | None = None) -> Result:
    """Runs train.py in `cwd`, with a home of its own so that no cache or credential of the user's plays a part."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    env = {**os.environ, "HOME": str(home), "KERAS_HOME": str(home / ".keras"), **(environment or {})}
    env.pop("PYTHONWARNINGS", None)
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def tiny(colours: Path) -> list[str]:
    return ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}"]


def refused(result: Result, cwd: Path) -> str:
    """The one line of a refusal: status 2, at most two printed lines, nothing left behind."""
    printed = (result.stdout + result.stderr).strip().splitlines()
    assert result.returncode == 2, printed
    assert len(printed) <= 2, printed
    assert "HYDRA_FULL_ERROR" not in result.stdout + result.stderr
    assert not list(cwd.iterdir())
    return printed[0]


def test_one_run_from_the_shell_is_quiet_and_complete(cwd: Path, tiny: list[str]) -> None:
    result = train(cwd, *tiny)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (status,) = cwd.glob("outputs/*/*/status.json")
    assert json.loads(status.read_text())["state"] == "done"
    for shown in ("train   val   test", "sizes in pixels", "trainable", "95 % interval", str(status.parent)):
        assert shown in result.stdout


@pytest.mark.slow
def test_names_and_settings_of_all_kinds_give_no_warning(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    """Python's warnings are errors, TensorFlow's own Keras 2 is asked for, and train.log has a line for each epoch."""
    draw_tree(tmp_path / "photos", {"blue": 6, "red": 6, "green": 6})
    names = {"blue": "a_$x_y_z$", "red": "[red]", "green": "热\udcff"}
    for old, new in names.items():
        (tmp_path / "photos" / old).rename(tmp_path / "photos" / new)
    options = [*tiny[:3], f"data.root={tmp_path / 'photos'}", "transfer=finetune", "transfer.backbone.epochs=2",
               "transfer.head.epochs=2"]  # fmt: skip
    env = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "LC_ALL": "C.UTF-8"}
    for more in (["hydra.run.dir=run"], ["head=mlp", "verbose=false", "hydra.run.dir=silent"]):
        command = [sys.executable, "-W", "error", str(ROOT / "train.py"), *options, *more]
        result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        printed = [line for line in result.stderr.splitlines() if "commonest class" not in line]  # so few images
        assert (result.returncode, printed) == (0, []), more
        log = (cwd / more[-1].partition("=")[2] / "train.log").read_text()
        epochs = re.findall(r"epoch \d+, stage \w+: .*", log)
        assert len(epochs) == (3 if len(more) == 1 else 4)
        assert all(line in result.stdout for line in epochs) == ("verbose=false" not in more)
        assert not [line for line in epochs if "val accuracy" not in line]


@pytest.mark.slow
def test_a_sweep_runs_every_combination(cwd: Path, tiny: list[str]) -> None:
    result = train(cwd, "-m", *tiny[1:], "backbone=tiny", "transfer=frozen,finetune", "seed=0,1",
                   "transfer.head.epochs=2", "callbacks=none")  # fmt: skip
    assert result.returncode == 0, result.stderr
    states = [json.loads(p.read_text())["state"] for p in cwd.glob("outputs/sweeps/*/*/status.json")]
    assert states == ["done"] * 4
    (board,) = cwd.glob("outputs/sweeps/*/leaderboard.md")
    text = board.read_text()
    assert all(f"| {transfer} | 2 |" in text for transfer in ("frozen", "finetune")), text
    assert "leaderboard by val_accuracy" in result.stdout


@pytest.mark.slow
def test_a_failed_job_ends_no_other_and_sets_the_exit_status(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    import h5py

    bad = tmp_path / "bad.weights.h5"
    with h5py.File(bad, "w") as file:
        file["of another network"] = [1.0]
    result = train(cwd, "-m", *tiny, f"backbone.weights={bad},null", "callbacks=none")
    assert result.returncode == 1
    assert "bad.weights.h5" in result.stderr.strip().splitlines()[-1]
    states = sorted(json.loads(p.read_text())["state"] for p in cwd.glob("outputs/sweeps/*/*/status.json"))
    assert states == ["done", "failed"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["head.droput=0.1"], ["head.droput", "head.dropout"]),
        (["backbone=saved"], ["backbone.weights"]),
        (
            ["backbone.weights=no.h5", "data=folder", "data.root=nowhere"],
            ["no.h5: no such file", "nowhere: does not exist"],
        ),
        (["backbone=tiny", "backbone.weights=BAD.h5", "data=folder", "data.root=PHOTOS"], ["BAD.h5 is a pickle"]),
        (["backbone=tiny", "backbone.weights=CUT.h5", "data=folder", "data.root=PHOTOS"], ["CUT.h5 is damaged"]),
        (["hydra.run.dir=/proc/nothing", "backbone=tiny", "data=folder", "data.root=PHOTOS"], ["/proc/nothing"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cwd: Path, colours: Path, arguments: list[str], told: list[str]
) -> None:
    import h5py

    (cwd.parent / "BAD.h5").write_bytes(pickle.dumps(os.system))
    with h5py.File(cwd.parent / "CUT.h5", "w") as file:
        file["kernel"] = np.zeros(1000)
    (cwd.parent / "CUT.h5").write_bytes((cwd.parent / "CUT.h5").read_bytes()[:-1000])
    words = [a.replace("PHOTOS", str(colours)).replace("weights=", f"weights={cwd.parent}/") for a in arguments]
    line = refused(train(cwd, *words), cwd)
    for word in told:
        assert word in line


@pytest.mark.slow
def test_bad_input_met_later_leaves_nothing_either(cwd: Path, tmp_path: Path, tiny: list[str]) -> None:
    mixed = draw_tree(tmp_path / "mixed", {"blue": 4, "red": 4})
    (mixed / "red" / "torn.jpg").write_bytes((mixed / "red" / "000.jpg").read_bytes()[:300])
    line = refused(train(cwd, *tiny[:3], f"data.root={mixed}"), cwd)
    assert "torn.jpg" in line
    assert "data.max_bad" in line
    assert train(cwd, *tiny[:3], f"data.root={mixed}", "data.max_bad=0.2", "callbacks=none").returncode == 0
    (kept,) = cwd.glob("outputs/*/*/set_aside.csv")
    assert kept.read_text() == f"path,reason\n{mixed / 'red' / 'torn.jpg'},truncated\n"
    facts = json.loads(kept.with_name("data_check.json").read_text())
    assert [facts["num_images"], facts["set_aside"][0]["reason"]] == [8, "truncated"]


@pytest.mark.parametrize(
    "name",
    ["hot-dog_(1)", "é", "热狗", "a=b", "it's", "two words"],
)
@pytest.mark.slow
def test_folder_names_as_people_have_them(cwd: Path, tmp_path: Path, tiny: list[str], name: str) -> None:
    draw_tree(tmp_path / name, {"blue": 6, "red": 6})
    result = train(cwd, *tiny[:3], f"data.root={tmp_path / name}", "callbacks=none")
    assert result.returncode == 0, result.stderr


@pytest.fixture
def silent_port() -> int:
    """A port that takes connections and never answers, as behind a firewall that drops packets."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]  # type: ignore[misc]
    server.close()
    for connection in held:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["url", "proxy"])
def test_imagenet_weights_behind_a_firewall(cwd: Path, colours: Path, silent_port: int, way: str) -> None:
    arguments = ["backbone=resnet50", "data=folder", f"data.root={colours}"]
    environment = {}
    if way == "url":
        arguments.append(f"backbone.url=http://127.0.0.1:{silent_port}/resnet50_notop.h5")
    else:
        environment = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), f"http://127.0.0.1:{silent_port}")
        environment |= {"NO_PROXY": "", "no_proxy": ""}
    line = refused(train(cwd, *arguments, environment=environment), cwd)
    for word in (".h5", "http", ".keras/models", "backbone.weights="):
        assert word in line


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_silent_command_prints_nothing(cwd: Path, tiny: list[str], options: list[str]) -> None:
    result = train(cwd, *tiny, "transfer=finetune", "transfer.backbone.epochs=1", "verbose=false", *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(cwd.rglob("metrics.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interruption_is_reported_and_recorded(cwd: Path, tiny: list[str], number: int) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *tiny, "transfer=scratch", "transfer.all.epochs=100000",
               "callbacks.early_stopping=null"]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background has it ignored
    )
    events = "outputs/*/*/tensorboard/*"
    for _ in range(600):
        if list(cwd.glob(events)):
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    (status,) = cwd.glob("outputs/*/*/status.json")
    assert told.splitlines()[-1] == f"interrupted; go on with: python train.py resume={status.parent}"
    assert json.loads(status.read_text())["state"] == "interrupted"
    assert not (status.parent / "model.keras").exists()


@pytest.mark.parametrize("way", [["train.py"], ["-m", "tl_research", "predict"]], ids=["train", "predict"])
def test_ctrl_c_during_imports_leaves_no_traceback(way: list[str]) -> None:
    """Interrupted by an import itself, the slowest of them being Hydra's and NumPy's."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt()); signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    assert _started(code, way) == (130, "interrupted\n")


@pytest.mark.parametrize("way", [["train.py"], ["-m", "tl_research", "predict"]], ids=["train", "predict"])
def test_windows_users_are_sent_to_wsl_in_one_line(way: list[str]) -> None:
    status, line = _started("import runpy, sys; sys.platform = 'win32'\n", way)
    assert (status, line.count("\n")) == (2, 1)
    assert "WSL 2" in line
    imported = [sys.executable, "-c", "import sys; sys.platform = 'win32'; import tl_research"]
    result = subprocess.run(imported, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == f"ImportError: {line.strip()}"


def _started(code: str, way: list[str]) -> tuple[int, str]:
    """Run our command after some code, as Python itself would; return its exit status and standard error."""
    if way[0] == "-m":
        code += f"sys.argv = ['-m', *{way[2:]}]; runpy.run_module({way[1]!r}, run_name='__main__', alter_sys=True)"
    else:
        code += f"sys.argv = {way}; runpy.run_path({way[0]!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr
