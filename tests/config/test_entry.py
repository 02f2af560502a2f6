"""The command line, run in this process: `entry`, `run_modes` and `exit_status`. Bad input leaves no file behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from tl_research.config.entry import main

Door = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Door]:
    """`door("head=mlp", ...)` -> exit status, printed lines. In a folder of its own; signals are given back."""
    monkeypatch.chdir(tmp_path)
    # Hydra closes all log handlers, and Abseil's, which TensorFlow brings, would then close pytest's own capture.
    monkeypatch.setattr("absl.logging.PythonHandler.close", lambda self: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", ""))
    terminate = signal.getsignal(signal.SIGTERM)

    def enter(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        status = main()
        printed = capsys.readouterr()
        return status, (printed.out + printed.err).strip().splitlines()

    yield enter
    signal.signal(signal.SIGTERM, terminate)
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--cfg", "everything"], "invalid choice: 'everything' (choose from"),
        (["--cfg", "job", "head.droput=1"], "nearest: head.dropout"),
        (["--cfg", "job", "-m"], "give one of"),
        (["--config-path", "elsewhere"], "--config-dir adds"),
        (["--config-dir", "elsewhere"], "elsewhere: no such folder"),
        (["--config-name", "nothing"], "Cannot find primary config 'nothing'"),
        (["--hydra-help", "backbone=tiny"], "Could not override 'backbone'"),
        (["hydra.run.dir="], "hydra.run.dir is empty"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: there is no such option"),
        (["-m", "seed=0,-1"], "seed=-1: should be"),
        (["backbone=tiny", "-m", "seed=0,1", "trainer.batch_size=0"], "trainer.batch_size=0: should be"),
        (["-m", "backbone=tiny,resnet51"], "backbone=resnet51: there is no such option"),
        (["-m", "bakbone=a,b"], "nearest: backbone"),
        (["-m", "seed=range(0)"], "seed=range(0): it gives no value"),
        (["-m", "seed=0,1", "backbone=glob(zzz*)"], "backbone=glob(zzz*): it gives no value"),
        (["-m", "seed=choice()"], "seed=choice(): "),
        (["-m", "seed=range(0,5,0)"], "seed=range(0,5,0): a range needs a step other than 0"),
        (["-m", "seed=0,", "head=linear"], "seed=0,: not of the form KEY=VALUE or KEY=VALUE,VALUE"),
        (["-m", "head=knn,", "linear"], "head=knn,: there must be no space beside a comma; write head=knn,linear"),
        (["-m", "head=knn", ",linear"], "head=knn: there must be no space beside a comma; write head=knn,linear"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"], "hydra/sweeper=optuna: this is for a sweep; add -m"),
        (["-m", "seed=0,1", "hydra.sweeper.n_trials=3"], "add hydra/sweeper=optuna, which has it"),
        (["-m", "head=mlp", "optimizer=lbfgs", "seed=0,1"], "optimizer=lbfgs solves linear heads"),
        (["data=folder", "data.root=it's", "backbone=tiny"], "it's: does not exist"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    door: Door, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    status, lines = door(*arguments)
    assert status == 2
    assert len(lines) == 1
    assert expected in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["-m", "data=folder", "data.root=/a b(1),/c d"],
            ["data.root=/a b(1): does not exist", "data.root=/c d: does not exist"],
        ),
        (
            ["-m", "backbone=tiny,resnet51", "trainer.batch_size=0,32", "seed=range(3)"],
            ["trainer.batch_size=0: should be", "backbone=resnet51: there is no such option"],
        ),
    ],
)
def test_all_errors_of_a_sweep_are_reported_once(
    door: Door, tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    status, lines = door(*arguments)
    assert status == 2
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["head=cosine"], "a: [1, 2"),
        (["--config-name", "mine"], "a: b: c"),
        (["-m", "head=linear,cosine"], "a: 1\na: 2"),
        (["head=cosine", "--cfg", "job"], "\ta: 1"),
    ],
)
def test_broken_yaml_is_named_with_its_line(door: Door, tmp_path: Path, command: list[str], text: str) -> None:
    (tmp_path / "conf" / "head").mkdir(parents=True)
    for name in ("head/cosine.yaml", "mine.yaml"):
        (tmp_path / "conf" / name).write_text(f"# a comment\n{text}\n")
    status, lines = door("--config-dir", "conf", *command)
    assert (status, len(lines)) == (2, 1)
    assert re.search(r"conf/(head/cosine|mine)\.yaml, line [234], column \d+: this is not YAML", lines[0])
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@pytest.mark.parametrize(
    "arguments", [["hydra.run.dir={}"], ["hydra.run.dir={}/red/x"], ["-m", "seed=0,1", "hydra.sweep.dir={}/x"]]
)
def test_outputs_do_not_go_among_the_photographs(
    door: Door, tmp_path: Path, colours: Path, arguments: list[str]
) -> None:
    status, lines = door(
        "backbone=tiny", "data=folder", f"data.root={colours}", *(text.format(colours) for text in arguments)
    )
    assert (status, len(lines)) == (2, 1)
    assert f"it is within data.root={colours}" in lines[0]
    assert not (colours / "x").exists()


def test_a_folder_that_may_not_be_written_is_named(
    door: Door, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    status, lines = door("backbone=tiny", "data=folder", f"data.root={colours}")
    assert (status, len(lines)) == (2, 1)
    assert f"{tmp_path} may not be written; hydra.run.dir=FOLDER" in lines[0]


@pytest.mark.parametrize("path", ["file", "file/below", "x" * 300])
def test_an_output_folder_that_cannot_be_one_is_named(door: Door, tmp_path: Path, colours: Path, path: str) -> None:
    (tmp_path / "file").touch()
    status, lines = door("backbone=tiny", "data=folder", f"data.root={colours}", f"hydra.run.dir={path}")
    assert (status, len(lines)) == (2, 1)
    assert f"cannot write {path}" in lines[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_directory_with_a_run_in_it_is_refused(door: Door, tmp_path: Path, colours: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "status.json").write_text("{}")
    status, lines = door("backbone=tiny", "data=folder", f"data.root={colours}", "hydra.run.dir=old")
    assert (status, lines) == (
        2,
        ["hydra.run.dir=old: there is a run in it already; name another directory, or add fresh=true to replace it"],
    )
    assert (tmp_path / "old" / "status.json").read_text() == "{}"


@pytest.mark.parametrize("arguments", [["backbone=tiny", "--cfg", "job"], ["--cfg", "job", "backbone=tiny"]])
def test_cfg_prints_the_config_and_runs_nothing(door: Door, tmp_path: Path, arguments: list[str]) -> None:
    status, lines = door(*arguments, "data=folder", "data.root=it's nowhere")
    assert status == 0
    config = yaml.safe_load("\n".join(lines))
    assert config["backbone"]["name"] == "tiny"
    assert config["data"]["root"] == "it's nowhere"
    assert not list(tmp_path.iterdir())
