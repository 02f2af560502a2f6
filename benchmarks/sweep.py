"""A sweep against the same jobs as separate commands, each on an empty store of its own: 12 heads (6 seeds, two kinds)
on a frozen ResNet50 with random weights. Metrics are compared job by job, at equal threads.

python -m benchmarks sweep [--photos PHOTOS] [--seeds 6] [--kinds linear,prototype] [--n-jobs 1,2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tl_research.system import hardware

Scores = dict[tuple[str, str], dict[str, float]]


def run(store: Path, *arguments: str) -> float:
    """Wall-clock seconds of one command."""
    command = [sys.executable, "-m", "tl_research", "train", *arguments, f"features.store={store}"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def scores(folder: Path) -> Scores:
    """Metrics of each run below a folder that say how good it is, by head and seed."""
    found: Scores = {}
    for path in folder.rglob("metrics.json"):
        text = (path.parent / ".hydra" / "overrides.yaml").read_text()
        asked = dict(line.removeprefix("- ").partition("=")[::2] for line in text.splitlines())
        metrics = json.loads(path.read_text())
        found[asked["head"], asked["seed"]] = {k: v for k, v in metrics.items() if k.startswith(("val_", "test_"))}
    return found


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep", description=__doc__)
    parser.add_argument("--photos", help="a class-folder tree; default: the demo, drawn")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--kinds", default="linear,prototype")
    parser.add_argument("--n-jobs", default="1,2")
    options = parser.parse_args(arguments)
    kinds, seeds = options.kinds.split(","), range(options.seeds)
    job = ["backbone=resnet50", "backbone.weights=null"]
    if options.photos:
        job += ["data=folder", f"data.root={options.photos}"]
    print(f"python -m benchmarks sweep {' '.join(arguments)}\n")
    print("| way | threads a job | seconds | separate commands / this | metrics that differ |")
    print("|---|---|---|---|---|")
    cores = hardware.cores()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        run(place / "warm_up", *job, f"hydra.run.dir={place / 'warm_up_run'}")  # draws, and reads what is on the disk
        for n_jobs in map(int, options.n_jobs.split(",")):
            threads = f"threads={max(cores // n_jobs, 1)}"
            seconds = 0.0
            for kind, seed in itertools.product(kinds, seeds):
                name = f"{n_jobs}-{kind}-{seed}"
                where = f"hydra.run.dir={place / f'separate{n_jobs}' / name}"
                seconds += run(place / name, *job, f"head={kind}", f"seed={seed}", threads, where)
            sweep = ["-m", f"head={options.kinds}", f"seed=range({options.seeds})", f"hydra.launcher.n_jobs={n_jobs}"]
            where = f"hydra.sweep.dir={place / f'sweep{n_jobs}'}"
            together = run(place / f"store{n_jobs}", *job, *sweep, threads, where)
            apart, joined = scores(place / f"separate{n_jobs}"), scores(place / f"sweep{n_jobs}")
            differ = sum(apart[at][key] != joined[at].get(key) for at in apart for key in apart[at])
            jobs = f"{len(apart)} commands | {max(cores // n_jobs, 1)} | {seconds:.1f} | 1.0 |"
            print(f"| {jobs} |")
            told = f"one sweep, n_jobs={n_jobs} | {max(cores // n_jobs, 1)} | {together:.1f}"
            print(f"| {told} | {seconds / together:.1f} | {differ} |", flush=True)
