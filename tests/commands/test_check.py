"""Test the command `check`, from planted faults to tables, page, status and the runs that follow."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import ROOT

TINY = ["backbone=tiny", "backbone.weights=null"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=500
    )


def draw_scenes(root: Path) -> Path:
    """Draw train/ and test/ of two classes; a test image mirrors a training image, another one is blank."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("test", 5)):
        for name, shade in (("dark", 40), ("light", 150)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(shade, shade + 100, (6, 6, 3)).astype(np.uint8))
                coarse.resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    copy = ImageOps.mirror(Image.open(root / "train/dark/0.jpg"))
    copy.save(root / "test/dark/copy.jpg", quality=70)
    Image.new("RGB", (90, 90), (180, 180, 180)).save(root / "test/light/blank.jpg")
    (root / "train/light/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a photograph")
    return root


@pytest.mark.slow
def test_planted_faults_are_told_and_later_runs_know(tmp_path: Path) -> None:
    photos = draw_scenes(tmp_path / "photos")
    data = ["data=folder", f"data.root={photos}", *TINY]
    check = ["-m", "tl_research", "check", *data, "--output", "found", "--strict"]
    done = command(tmp_path, *check)
    assert done.returncode == 1, done.stderr  # a leak, and --strict
    found = tmp_path / "found"
    leaks = [{row["path"], row["other"]} for row in rows(found / "leaks.csv")]
    assert {"train/dark/0.jpg", "test/dark/copy.jpg"} in leaks
    status = {row["path"]: (row["status"], row["reason"]) for row in rows(found / "manifest.csv")}
    assert status["test/light/blank.jpg"] == ("used", "blank")
    assert status[str(photos / "train/light/broken.jpg")][0] == "set aside"
    told = json.loads((found / "check.json").read_text())
    assert told["num_leaks"] == len(leaks)
    assert "no duplicate,train/dark/0.jpg,test/dark/copy.jpg" in (found / "check.html").read_text()

    ignore = tmp_path / "ignore.csv"
    lines = [f"no duplicate,{row['path']},{row['other']}\n" for row in rows(found / "leaks.csv")]
    run = command(tmp_path, str(ROOT / "train.py"), *data, "hydra.run.dir=run", "data.check=full")
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["num_test_leaks"] >= 1
    assert 0 <= metrics["test_accuracy_without_leaks"] <= 1
    assert rows(tmp_path / "run/check/leaks.csv") == rows(found / "leaks.csv")

    ignore.write_text("finding,path,other\n" + "".join(lines))
    again = command(tmp_path, *check, f"data.ignore={ignore}")
    assert again.returncode == 0, again.stderr
    assert rows(found / "leaks.csv") == []
    by_group = command(tmp_path, *check[:-2], f"data.group_by={tmp_path / 'run/check/duplicates.csv'}")
    assert by_group.returncode == 0, by_group.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "seed=1,2"], "-m: check looks at one data set"),
        (["shard=0/2"], "shard=0/2: check looks at the images of a whole run"),
        (["data.check=often"], "data.check=often"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line(tmp_path: Path, colours: Path, arguments: list[str], said: str) -> None:
    done = command(tmp_path, "-m", "tl_research", "check", "data=folder", f"data.root={colours}", *TINY, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "outputs").exists()
