"""The wheel carries its configuration and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder(tmp_path: Path, colours: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "tl_research", "train", "backbone=tiny", "data=folder", f"data.root={colours}"]
    place = tmp_path / "elsewhere"
    program = "import tl_research; print(tl_research.__file__)"
    where = subprocess.run([sys.executable, "-c", program], cwd=place, env=environment, check=True,
                           capture_output=True, text=True)  # fmt: skip
    assert where.stdout.startswith(str(tmp_path / "installed"))
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert list(place.glob("outputs/*/*/model.keras"))
