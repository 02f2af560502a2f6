"""README's promises: its commands compose, its tables are complete, its loader gives the model's answers."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tl_research import compose

README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_one_line_each_in_a_block_of_their_own() -> None:
    blocks = [block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S)]
    assert len(blocks) == 2
    assert all("\n" not in block and "&&" in block for block in blocks)
    assert blocks[0].endswith("python train.py")
    assert blocks[1].endswith("pytest")


def test_the_table_of_groups_is_the_folder_conf() -> None:
    for group in sorted(path for path in (ROOT / "conf").rglob("*") if list(path.glob("*.yaml"))):
        (row,) = re.findall(rf"^\| `{group.relative_to(ROOT / 'conf')}` \| (.*) \|$", README, re.M)
        assert {name.rstrip("*") for name in re.findall(r"`([^`]+)`", row)} == {p.stem for p in group.glob("*.yaml")}


def commands() -> list[str]:
    return re.findall(r"^python train\.py (?!-|resume=)(.*?)\s*(?:#.*)?$", README, re.M)


@pytest.mark.parametrize("command", commands())
def test_its_commands_compose(command: str) -> None:
    assert compose(command.split()).transfer


def test_every_file_of_a_run_is_in_its_table(tmp_path: Path, colours: Path) -> None:
    run = compose(["backbone=tiny", "data=folder", f"data.root={colours}"]).run(tmp_path / "run")
    for path in run.directory.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in README


@pytest.mark.slow
def test_its_loader_and_keras_alone_give_the_runs_answers(tmp_path: Path, colours: Path) -> None:
    """In a new process, with nothing of ours imported."""
    run = compose(["backbone=tiny", "data=folder", f"data.root={colours}"]).run(tmp_path / "run")
    (loader,) = re.findall(r"```python\n(image = Image.open\(path\).*?)```", README, re.S)
    program = (
        "import csv, sys, keras, numpy as np\nfrom PIL import Image, ImageOps\nsize = 64\n"
        "for row in csv.DictReader(open('predictions.csv')):\n    path = row['path']\n"
        + "".join(f"    {line}\n" for line in loader.strip().splitlines())
        + "    print(*np.asarray(logits)[0])\n"
        "assert not any(name.startswith('tl_research') for name in sys.modules)\n"
    )
    environment = {"PATH": "", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=run.directory, env=environment, capture_output=True, text=True, check=True
    )
    logits = np.array([line.split() for line in result.stdout.splitlines()], float)
    with (run.directory / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = np.log([[float(row[f"p_{name}"]) for name in run.class_names()] for row in rows])
    assert [run.class_names()[i] for i in logits.argmax(1)] == [row["prediction"] for row in rows]
    assert np.abs((logits - logits.mean(1, keepdims=True)) - (told - told.mean(1, keepdims=True))).max() < 1e-3


@pytest.mark.slow
def test_the_main_job_reaches_what_is_promised(tmp_path: Path) -> None:
    run = compose([f"data.cache={tmp_path}"]).run(tmp_path / "run")
    assert run.metrics["test_accuracy"] >= 0.95


@pytest.mark.slow
def test_the_demo_is_as_hard_as_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import demo

    demo.main([])
    colours, random, imagenet = (float(x) for x in re.findall(r"\| (0\.\d{3}) \|", capsys.readouterr().out))
    assert colours <= 0.80
    assert imagenet >= 0.95
    assert random <= imagenet - 0.10
