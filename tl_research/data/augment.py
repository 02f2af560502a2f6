"""Random changes of an image, each a pure function of (image, recipe, what it is drawn for)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field

from tl_research.data.decode import BACKGROUND, Resize, code_hash, decode_image, fit
from tl_research.recipe import Seed, Share, recipe


@recipe
class Augment:
    """What may happen to an image; as it stands, nothing.

    `flip` mirrors half of the images. `crop` cuts out at least this share of the area, its sides' ratio between 3/4 and
    4/3 of the image's own (Szegedy et al. 2015, arXiv 1409.4842). `rotate` turns by up to so many degrees either way.
    `brightness`, `contrast` and `saturation` are scaled by up to so much: 0.2 is 0.8 to 1.2.
    """

    flip: bool = False
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    seed: Seed = 0

    @property
    def changes_nothing(self) -> bool:
        """Whether every image stays as it is."""
        return self == Augment(seed=self.seed)

    def digest(self, image: bytes, occasion: object) -> bytes:
        """SHA-256 that stands for one augmented version of an image: what it is drawn from, and what it is stored
        under. `occasion` is the number of the view, or (seed, epoch)."""
        told = json.dumps([code_hash(__file__), asdict(self), occasion], sort_keys=True)
        return hashlib.sha256(image + told.encode()).digest()

    def apply(self, image: Image.Image, size: int, resize: Resize, version: bytes) -> Image.Image:
        """The version of an upright RGB image that a digest stands for, `size` x `size`."""
        rng = np.random.default_rng(np.frombuffer(version, np.uint32))
        if self.crop < 1:
            image = image.crop(_box(image.size, self.crop, rng))
        image = fit(image, size, resize)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotate:
            angle = rng.uniform(-self.rotate, self.rotate)
            image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=BACKGROUND)
        for strength, change in (
            (self.brightness, ImageEnhance.Brightness),
            (self.contrast, ImageEnhance.Contrast),
            (self.saturation, ImageEnhance.Color),
        ):
            if strength:
                image = change(image).enhance(rng.uniform(1 - strength, 1 + strength))
        return image


def augmented_pixels(content: bytes, size: int, resize: Resize, augment: Augment, version: bytes) -> np.ndarray:
    """`decode_pixels` of an augmented version: uint8 `(size, size, 3)`. Raises `UndecodableError`."""
    image = decode_image(content, at_least=math.ceil(2 * size / math.sqrt(augment.crop)))
    return np.asarray(augment.apply(image, size, resize, version))


def _box(size: tuple[int, int], least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    area = rng.uniform(least, 1)
    widest = math.log(min(4 / 3, 1 / area))  # beyond that a side would not fit, and cutting it would cost area
    ratio = math.exp(rng.uniform(-widest, widest))
    w = min(math.ceil(width * math.sqrt(area * ratio)), width)
    h = min(math.ceil(height * math.sqrt(area / ratio)), height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h
