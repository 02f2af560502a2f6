"""Apply RandAugment (Cubuk et al. 2019, arXiv 1909.13719), with the ranges of AutoAugment (arXiv 1805.09501)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tl_research.data.decode import BACKGROUND

Operation = Callable[[Image.Image, float], Image.Image]
"""Changes an RGB image by a strength from -1 to 1. Some operations ignore it, some ignore its sign."""

MAX_MAGNITUDE = 30


def _enhance(kind: Any, image: Image.Image, strength: float) -> Image.Image:
    return kind(image).enhance(1 + 0.9 * strength)


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=BACKGROUND)


def _shear(matrix: tuple[float, ...], image: Image.Image, strength: float) -> Image.Image:
    sheared = tuple(np.array((1, 0, 0, 0, 1, 0)) + 0.3 * strength * np.array(matrix))
    return image.transform(image.size, Image.Transform.AFFINE, sheared, Image.Resampling.BILINEAR, fillcolor=BACKGROUND)


def _translate(axis: int, image: Image.Image, strength: float) -> Image.Image:
    moved = Image.new("RGB", image.size, BACKGROUND)
    by = round(0.45 * strength * image.size[axis])
    moved.paste(image, (by, 0) if axis == 0 else (0, by))
    return moved


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": _rotate,
    "solarize": lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "color": partial(_enhance, ImageEnhance.Color),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "contrast": partial(_enhance, ImageEnhance.Contrast),
    "brightness": partial(_enhance, ImageEnhance.Brightness),
    "sharpness": partial(_enhance, ImageEnhance.Sharpness),
    "shear_x": partial(_shear, (0, 1, 0, 0, 0, 0)),
    "shear_y": partial(_shear, (0, 0, 0, 1, 0, 0)),
    "translate_x": partial(_translate, 0),
    "translate_y": partial(_translate, 1),
}


def rand_augment(image: Image.Image, count: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """Apply `count` random operations to an RGB image, each of strength `magnitude` of 30, with random sign."""
    names = list(OPERATIONS)
    for _ in range(count):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        image = operation(image, magnitude / MAX_MAGNITUDE * rng.choice((-1, 1)))
    return image
