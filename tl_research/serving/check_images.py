"""Choose the images on which an exported model must agree with its run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tl_research.data.decode import Resize, UndecodableError, fit, read_pixels
from tl_research.runs.run import Run

FEWEST = 8


def check_images(run: Run, size: int, resize: Resize, most: int) -> tuple[list[str], np.ndarray]:
    """Read at most `most` of a run's validation and test images, evenly spread: names, and pixels uint8 `(n, size,
    size, 3)`. Where the run has been moved and these are not there, parts of photographs that come with scikit-learn
    take their place: any real image shows whether two runtimes agree."""
    paths = [row["path"] for row in run.answers("predictions.csv")]
    names, images = [], []
    for path in [paths[n] for n in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths)), dtype=int))]:
        try:
            images.append(read_pixels(Path(path), size, resize, run.pixel_range))
            names.append(path)
        except UndecodableError:
            continue
    if len(images) < FEWEST:
        names, images = [*names, *[""] * FEWEST], [*images, *_photographs(size, resize)]
    return names, np.stack(images)


def is_deep(path: str) -> bool:
    """Return whether Pillow reads an image as grey of more than 8 bits."""
    try:
        with Image.open(path) as image:
            return image.mode[0] in "IF"
    except UnidentifiedImageError:  # an array, or a format for which it needs a plug-in
        return False


def _photographs(size: int, resize: Resize) -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    boxes = [(left, top, left + 320, top + 213) for left in (0, 320) for top in (0, 213)]
    return [np.asarray(fit(photo.crop(box), size, resize)) for photo in photographs for box in boxes]
