"""`predict` on many JPEGs, a whole process, against the limit of the machine that `benchmarks frozen` defines.

    python -m benchmarks predict [--images 20000] [--side 512]

The limit is measured before and after, on the same files. Each row is one process: answers of all images, and the same
killed half way and continued, where every image must have one row.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import frozen, growth
from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.features.engines import BATCH, build_engine
from tl_research.system import hardware
from tl_research.system.console import silenced

PER_JOB = 250


def draw(job: tuple[list[Path], Path, int, int]) -> None:
    """JPEGs `first` to `first + PER_JOB`: drawn pictures, each moved by other amounts, so that no two are alike."""
    from PIL import Image

    pictures, folder, first, last = job
    for number in range(first, min(first + PER_JOB, last)):
        rng = np.random.default_rng(number)
        with Image.open(pictures[number % len(pictures)]) as image:
            moved = np.roll(np.asarray(image.convert("RGB")), rng.integers(0, image.width, 2), (0, 1))
        Image.fromarray(moved).save(folder / f"{number:06}.jpg", quality=90)


def limit(root: Path) -> float:
    """Images a second at best: cores / (core seconds of decoding + of inference), the median of five turns."""
    experiment = compose(["data=folder", f"data.root={root}"])
    data, network = experiment.data.load(), experiment.backbone.build()
    engine, size = build_engine("auto", network, 1), network.input_shape[1]
    spent = []
    for turn in range(5):
        began = time.process_time()
        pixels = np.stack([data.pixels(turn * BATCH + index, size) for index in range(BATCH)])
        decoded = time.process_time()
        for _ in range(6):
            engine(pixels)
        spent.append((decoded - began) / BATCH + (time.process_time() - decoded) / (6 * BATCH))
    return hardware.cores() / statistics.median(spent)


def killed_and_continued(command: list[str], output: Path, images: int) -> str:
    """Kill the command when half of the rows are written, continue it, and say which rows are twice or missing."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < images // 2):
        time.sleep(0.2)
    process.kill()
    process.wait()
    kept = max(output.read_bytes().count(b"\n") - 1, 0)
    subprocess.run([*command, "--continue"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with output.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    twice, missing = len(paths) - len(set(paths)), images - len(set(paths))
    return f"killed after {kept:,} of {images:,} rows and continued: {twice} twice, {missing} missing"


def main(arguments: list[str]) -> None:
    """Prints the table, and what became of the killed process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks predict", description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--side", type=int, default=512, help="pixels of the drawn photographs")
    options = parser.parse_args(arguments)
    print(f"python -m benchmarks predict {' '.join(arguments)}\n")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        root = frozen.draw(scratch, 528, options.side)
        pictures, many = sorted(root.rglob("*.jpg")), scratch / "many"
        many.mkdir()
        jobs = [(pictures, many, first, options.images) for first in range(0, options.images, PER_JOB)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(draw, jobs))
        start_backend()
        with silenced():
            run = compose(["data=folder", f"data.root={root}", "callbacks=none"]).run(scratch / "run").directory
        command = [sys.executable, "-m", "tl_research", "predict", str(run), str(many), "-o"]
        before = limit(root)
        seconds, memory = growth.measure_process([*command, str(scratch / "all.csv")])
        best = (before + limit(root)) / 2
        rate = options.images / seconds
        print(
            "| images | seconds | images/s | limit, images/s | predict / limit | peak MB |\n|---|---|---|---|---|---|"
        )
        print(f"| {options.images:,} | {seconds:.1f} | {rate:.1f} | {best:.1f} | {rate / best:.2f} | {memory:.0f} |\n")
        output = scratch / "killed.csv"
        print(killed_and_continued([*command, str(output)], output, options.images))
