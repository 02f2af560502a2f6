"""The drawn data set on disk: seeded, drawn once, by several processes, and under its name only when it is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from tl_research.data.scenes import scene
from tl_research.progress import bar

RENDERER = 1
"""Raised whenever a picture would come out differently, so that no cache holds pictures of two kinds."""

CLASSES = ("hot_dog", "not_hot_dog")
Job = tuple[str, str, int]


def cache_name(sizes: dict[str, int], seed: int) -> str:
    """A folder name that tells these pictures from all others."""
    return "_".join(
        ["hot_dog_demo", f"v{RENDERER}", *(f"{split}{size}" for split, size in sizes.items()), f"seed{seed}"]
    )


def draw(folder: Path, sizes: dict[str, int], seed: int, processes: int | None = None) -> Path:
    """Draws `folder/<split>/<class>/<0000>.jpg` unless `folder` is there already; returns it.

    `sizes` is the number of pictures in each split, both classes alike. A picture depends on its seed, split, class and
    number alone. Raises RuntimeError if a drawing process fails; then nothing is left behind.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for split in sizes:
            for name in CLASSES:
                (unfinished / split / name).mkdir(parents=True)
        _draw_all(unfinished, sizes, seed, processes or os.cpu_count() or 1)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its pictures are the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def jobs(sizes: dict[str, int]) -> list[Job]:
    """Every picture as `(split, class, number)`."""
    return [(split, CLASSES[i % 2], i // 2) for split, size in sizes.items() for i in range(size)]


def _draw_all(folder: Path, sizes: dict[str, int], seed: int, processes: int) -> None:
    """Starts the workers and counts what they report.

    They are processes of this module by itself: `multiprocessing` would run the caller's script again in each, or copy
    a process in which TensorFlow has threads.
    """
    total = len(jobs(sizes))
    processes = max(1, min(processes, total // 8))
    shared = [str(folder), str(seed), ",".join(f"{split}={size}" for split, size in sizes.items()), str(processes)]
    command = [sys.executable, "-m", "tl_research.data.demo", *shared]
    home = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}
    workers = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for n in range(processes)
    ]
    try:
        with bar() as progress:
            task = progress.add_task("drawing hot dogs", total=total)
            for worker in workers:  # they advance together, so reading one after the other keeps the bar true enough
                assert worker.stdout is not None
                for _ in worker.stdout:
                    progress.advance(task, processes if worker is workers[0] else 0)
        for worker in workers:
            _, told = worker.communicate()
            if worker.returncode:
                raise RuntimeError(f"drawing the demo failed: {told.strip().splitlines()[-1:] or worker.returncode}")
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _draw_share(folder: Path, sizes: dict[str, int], seed: int, processes: int, number: int) -> None:
    for split, name, index in jobs(sizes)[number::processes]:
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), CLASSES.index(name), index])
        picture = scene(name == CLASSES[0], rng)
        picture.save(folder / split / name / f"{index:04d}.jpg", quality=int(rng.integers(60, 96)))
        print(flush=True)  # noqa: T201 - a line is a picture: the parent counts them


if __name__ == "__main__":
    where, base_seed, text, count, mine = sys.argv[1:]
    counts = {split: int(size) for split, size in (part.split("=") for part in text.split(","))}
    _draw_share(Path(where), counts, int(base_seed), int(count), int(mine))
