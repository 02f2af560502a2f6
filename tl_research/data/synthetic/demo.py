"""The drawn data sets on disk: seeded, drawn once, by several processes, and under their names only when whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from tl_research.data.synthetic.sauce import COURSES, sauce_scene
from tl_research.data.synthetic.scenes import scene
from tl_research.system.progress import bar

CLASSES = ("hot_dog", "not_hot_dog")
Job = tuple[str, str, int]


@dataclass(frozen=True)
class Drawing:
    """A drawn data set: its classes, and what paints one picture of a class.

    `version` is raised whenever a picture would come out differently, so that no cache holds pictures of two kinds.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    paint: Callable[[str, np.random.Generator], Image.Image]


DEMO = Drawing("hot_dog_demo", 1, CLASSES, lambda name, rng: scene(name == CLASSES[0], rng))
SAUCE = Drawing("hot_dog_sauce", 1, tuple(COURSES), sauce_scene)
DRAWINGS = {drawing.name: drawing for drawing in (DEMO, SAUCE)}


def cache_name(sizes: dict[str, int], seed: int, drawing: Drawing = DEMO) -> str:
    """A folder name that tells these pictures from all others."""
    return "_".join(
        [drawing.name, f"v{drawing.version}", *(f"{split}{size}" for split, size in sizes.items()), f"seed{seed}"]
    )


def draw(folder: Path, sizes: dict[str, int], seed: int, processes: int | None = None, drawing: Drawing = DEMO) -> Path:
    """Draws `folder/<split>/<class>/<0000>.jpg` unless `folder` is there already; returns it.

    `sizes` is the number of pictures in each split, all classes alike. A picture depends on its seed, split, class and
    number alone. Raises RuntimeError if a drawing process fails; then nothing is left behind.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for split in sizes:
            for name in drawing.classes:
                (unfinished / split / name).mkdir(parents=True)
        _draw_all(unfinished, sizes, seed, processes or os.cpu_count() or 1, drawing)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its pictures are the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def jobs(sizes: dict[str, int], classes: tuple[str, ...] = CLASSES) -> list[Job]:
    """Every picture as `(split, class, number)`."""
    many = len(classes)
    return [(split, classes[i % many], i // many) for split, size in sizes.items() for i in range(size)]


def _draw_all(folder: Path, sizes: dict[str, int], seed: int, processes: int, drawing: Drawing) -> None:
    """Starts the workers and counts what they report.

    They are processes of this module by itself: `multiprocessing` would run the caller's script again in each, or copy
    a process in which TensorFlow has threads.
    """
    total = len(jobs(sizes))
    processes = max(1, min(processes, total // 8))
    shared = [str(folder), str(seed), ",".join(f"{split}={size}" for split, size in sizes.items()), str(processes)]
    command = [sys.executable, "-m", "tl_research.data.synthetic.demo", drawing.name, *shared]
    home = str(Path(__file__).resolve().parents[3])
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


def _draw_share(drawing: Drawing, folder: Path, sizes: dict[str, int], seed: int, processes: int, number: int) -> None:
    for split, name, index in jobs(sizes, drawing.classes)[number::processes]:
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), drawing.classes.index(name), index])
        picture = drawing.paint(name, rng)
        picture.save(folder / split / name / f"{index:04d}.jpg", quality=int(rng.integers(60, 96)))
        sys.stdout.write("\n")  # a line is a picture: the parent counts them
        sys.stdout.flush()


if __name__ == "__main__":
    which, where, base_seed, text, count, mine = sys.argv[1:]
    counts = {split: int(size) for split, size in (part.split("=") for part in text.split(","))}
    _draw_share(DRAWINGS[which], Path(where), counts, int(base_seed), int(count), int(mine))
