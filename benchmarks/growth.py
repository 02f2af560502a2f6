"""How time, memory and files grow with the data: `extract` on generated images, tiny backbone, a process each.

python -m benchmarks growth [--sizes 1000,10000,50000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

CLASSES = ("a", "b")


def draw(job: tuple[Path, int, int]) -> None:
    """JPEGs `first` to `last`, 64 pixels wide, no two alike, in class folders."""
    from PIL import Image

    root, first, last = job
    for number in range(first, last):
        rng = np.random.default_rng(number)
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(root / CLASSES[number % 2] / f"{number}.jpg")


def measure(root: Path, store: Path, run: Path) -> tuple[float, float]:
    """Wall-clock seconds and peak memory (MB) of one `extract`, whole process."""
    command = [sys.executable, "-m", "tl_research", "extract", "backbone=tiny", "data=folder", f"data.root={root}"]
    return measure_process([*command, f"features.store={store}", f"hydra.run.dir={run}"])


def measure_process(command: list[str]) -> tuple[float, float]:
    """Wall-clock seconds and peak memory (MB) of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(process.stderr.read().decode() if process.stderr else f"{command[3]} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,50000")
    sizes = [int(size) for size in parser.parse_args(arguments).sizes.split(",")]
    print(f"python -m benchmarks growth {' '.join(arguments)}\n")
    print("| images | cold, s | images/s | peak MB | again, s | peak MB | files in the store | store, MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        for name in CLASSES:
            (root / name).mkdir(parents=True)
        drawn = 0
        for size in sizes:
            with ProcessPoolExecutor() as pool:
                list(pool.map(draw, [(root, first, min(first + 500, size)) for first in range(drawn, size, 500)]))
            drawn = size
            store = Path(folder) / f"store{size}"
            time.sleep(3)  # files must have settled before the file-status index trusts them
            cold, memory = measure(root, store, Path(folder) / f"cold{size}")
            warm, again = measure(root, store, Path(folder) / f"warm{size}")
            files = [path for path in store.rglob("*") if path.is_file()]
            held = sum(path.stat().st_size for path in files) / 1e6
            speed, found = f"{cold:.1f} | {size / cold:.0f} | {memory:.0f}", f"{warm:.1f} | {again:.0f}"
            print(f"| {size:,} | {speed} | {found} | {len(files)} | {held:.1f} |", flush=True)
