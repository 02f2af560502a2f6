"""The examples of CONTRIBUTING.md work as they are written, outside the clone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = re.findall(r"^```(?:python|yaml)\n# (my_\S+)\n(.*?)^```$", PAGE, re.S | re.M)
COMMANDS = re.findall(r"^python train.py (.*)$", PAGE, re.M)
SMALL = ["backbone=tiny", "backbone.image_size=32", "transfer.head.epochs=2", "transfer.backbone.epochs=1"]


@pytest.fixture
def own(cwd: Path) -> Path:
    """A folder with the page's files."""
    for name, content in FILES:
        (cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (cwd / name).write_text(content)
    return cwd


@pytest.mark.slow
@pytest.mark.parametrize("way", [[str(ROOT / "train.py")], ["-m", "tl_research", "train"]], ids=["script", "module"])
def test_all_examples_at_once(own: Path, colours: Path, way: list[str]) -> None:
    arguments = {word: None for command in COMMANDS for word in shlex.split(command) if "resnet" not in word}
    words = [f"data.share={colours}" if word.startswith("data.share") else word for word in arguments]
    command = [sys.executable, *way, *SMALL, *words, "hydra.run.dir=run"]
    env = {**os.environ, **({"PYTHONPATH": str(ROOT)} if way[0] == "-m" else {})}
    result = subprocess.run(command, cwd=own, env=env, capture_output=True, text=True, check=False)
    printed = [line for line in result.stderr.splitlines() if "commonest class" not in line]  # few images
    assert (result.returncode, printed) == (0, [])
    config = (own / "run" / "config.yaml").read_text()
    assert all(name in config for name in ("my_heads.Cosine", "my_sources.Mounted", "my_callbacks.CsvLog"))
    assert (own / "run" / "log.csv").read_text().startswith("epoch,accuracy,")


@pytest.mark.slow
def test_each_command_composes_and_the_backbone_builds(own: Path) -> None:
    program = """
import sys
from dataclasses import replace
sys.path.append('.')
from tl_research import compose
for command in sys.argv[1:]:
    experiment = compose(command.split()[2:], 'my_conf')
    if 'backbone=' in command:
        print(replace(experiment.backbone, weights=None, image_size=32).build().count_params())
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *COMMANDS]
    result = subprocess.run(command, cwd=own, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "42658176\n"
    assert len(COMMANDS) == 5
