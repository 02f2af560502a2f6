"""Draw the synthetic data sets to disk: seeded, once, in several processes, renamed into place when complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl_research.data.synthetic.sauce import COURSES, sauce_scene
from tl_research.data.synthetic.scenes import scene
from tl_research.system.locks import locked
from tl_research.system.progress import bar

CLASSES = ("hot_dog", "not_hot_dog")
Job = tuple[str, str, int]


@dataclass(frozen=True)
class Drawing:
    """A synthetic data set: its classes and the function that paints one picture of a class.

    Raise `version` whenever a picture would change, so that no cache mixes old and new pictures.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    paint: Callable[[str, np.random.Generator], Image.Image]


DEMO = Drawing("hot_dog_demo", 1, CLASSES, lambda name, rng: scene(name == CLASSES[0], rng))
SAUCE = Drawing("hot_dog_sauce", 1, tuple(COURSES), sauce_scene)
DRAWINGS = {drawing.name: drawing for drawing in (DEMO, SAUCE)}


def cache_name(sizes: dict[str, int], seed: int, drawing: Drawing = DEMO) -> str:
    """Return a folder name that is unique to these pictures."""
    return "_".join(
        [drawing.name, f"v{drawing.version}", *(f"{split}{size}" for split, size in sizes.items()), f"seed{seed}"]
    )


def draw(folder: Path, sizes: dict[str, int], seed: int, processes: int | None = None, drawing: Drawing = DEMO) -> Path:
    """Draw `folder/<split>/<class>/<0000>.jpg` unless `folder` exists; return it.

    `sizes` is the number of pictures in each split, divided evenly among classes. A picture depends only on its seed,
    split, class and number. Raises RuntimeError if a drawing process fails; then nothing is left on disk.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = f".{folder.name}"
    with locked(folder.parent / f"{hidden}.lock", "draws the images"):
        unfinished = folder.parent / f"{hidden}.unfinished"
        try:
            if not folder.is_dir():
                for killed in folder.parent.glob(f"{hidden}.*/"):  # what is left of a process that was killed
                    shutil.rmtree(killed)
                for split in sizes:
                    for name in drawing.classes:
                        (unfinished / split / name).mkdir(parents=True)
                draw_all(unfinished, sizes, seed, processes or os.cpu_count() or 1, drawing)
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            (folder.parent / f"{hidden}.lock").unlink(missing_ok=True)
    return folder


def jobs(sizes: dict[str, int], classes: tuple[str, ...] = CLASSES) -> list[Job]:
    """List all pictures as `(split, class, number)`."""
    many = len(classes)
    return [(split, classes[i % many], i // many) for split, size in sizes.items() for i in range(size)]


def draw_all(folder: Path, sizes: dict[str, int], seed: int, processes: int, drawing: Drawing) -> None:
    """Start the worker processes and count the pictures they report.

    Each runs this module as a script: `multiprocessing` would rerun the caller's script, or copy a process in which
    TensorFlow has threads.
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
            for worker in workers:  # they advance together, so reading one after the other is accurate enough
                assert worker.stdout is not None
                for _ in worker.stdout:
                    progress.advance(task, processes if worker is workers[0] else 0)
        for worker in workers:
            _, message = worker.communicate()
            if worker.returncode:
                raise RuntimeError(f"drawing the demo failed: {message.strip().splitlines()[-1:] or worker.returncode}")
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
    which, target, base_seed, text, count, rank = sys.argv[1:]
    counts = {split: int(size) for split, size in (part.split("=") for part in text.split(","))}
    _draw_share(DRAWINGS[which], Path(target), counts, int(base_seed), int(count), int(rank))
