"""multirun.sh: the published sweep with extra arguments; offline, jobs that have weights run."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def multirun(folder: Path, photos: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A small version of it, in a home without weights, behind a proxy that is not there."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    env = {**os.environ, "HOME": str(home), "KERAS_HOME": str(home), "https_proxy": nowhere, "HTTPS_PROXY": nowhere}
    small = ["seed=0,1", "transfer=frozen,finetune", "transfer.backbone.epochs=1", "callbacks=none"]
    command = [str(ROOT / "multirun.sh"), "backbone=efficientnet_lite0,mobilenet_v2", *small, "data=folder"]
    command += [f"data.root={photos}", f"hydra.sweep.dir={folder / 'sweep'}", "hydra.launcher.n_jobs=2", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_offline_the_leaderboard_lists_skipped_and_random_runs(tmp_path: Path, colours: Path) -> None:
    done = multirun(tmp_path, colours)
    assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path / 'sweep' / 'report.html'}" in done.stdout
    ranks = {(row["backbone"], row["transfer"]): (row["rank"], row["status"]) for row in rows(tmp_path)}
    assert ranks["mobilenet_v2", "frozen"] == ("", "2 skipped: no weights")
    assert ranks["mobilenet_v2", "finetune"] == ("", "2 skipped: no weights")
    found = {ranks["efficientnet_lite0", way] for way in ("frozen", "finetune")}
    assert ("1", "2 done") in found <= {("1", "2 done"), ("2", "2 done")}  # equal values share a rank
    before = sorted((path.stat().st_mtime_ns, path) for path in (tmp_path / "sweep").glob("*/metrics.json"))
    assert len(before) == 4

    again = multirun(tmp_path, colours, "--random")
    assert again.returncode == 0, again.stderr
    ranks = {(row["backbone"], row["transfer"]): (row["rank"], row["status"]) for row in rows(tmp_path)}
    random = {ranks["mobilenet_v2", way] for way in ("frozen", "finetune")}
    assert ("1", "2 done, random weights") in random <= {(rank, "2 done, random weights") for rank in ("1", "2")}
    found = {ranks["efficientnet_lite0", way] for way in ("frozen", "finetune")}
    assert ("1", "2 done") in found <= {("1", "2 done"), ("2", "2 done")}  # equal values share a rank
    after = sorted((path.stat().st_mtime_ns, path) for path in (tmp_path / "sweep").glob("*/metrics.json"))
    assert set(before) < set(after), "what was done is left as it was"
    assert len(after) == 8
