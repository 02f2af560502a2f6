"""How time and memory of `check` grow with the number of images: generated ones, tiny backbone, a process each.

python -m benchmarks check [--sizes 1000,4000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.growth import CLASSES, draw, measure_process


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks check", description=__doc__)
    parser.add_argument("--sizes", default="1000,4000")
    sizes = [int(size) for size in parser.parse_args(arguments).sizes.split(",")]
    print(f"python -m benchmarks check {' '.join(arguments)}\n\n| images | s | images/s | peak MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root, drawn = Path(folder) / "images", 0
        for name in CLASSES:
            (root / name).mkdir(parents=True)
        for size in sizes:
            with ProcessPoolExecutor() as pool:
                list(pool.map(draw, [(root, first, min(first + 500, size)) for first in range(drawn, size, 500)]))
            drawn = size
            command = [sys.executable, "-m", "tl_research", "check", "backbone=tiny", "backbone.weights=null"]
            places = [f"data.root={root}", f"features.store={folder}/store{size}", "--output", f"{folder}/found{size}"]
            seconds, memory = measure_process([*command, "data=folder", *places])
            print(f"| {size:,} | {seconds:.1f} | {size / seconds:.0f} | {memory:.0f} |", flush=True)
