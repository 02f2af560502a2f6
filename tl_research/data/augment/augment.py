"""Augment images at random, as a pure function of (image, recipe, draw key)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field

from tl_research.data.augment.mixing import Mixed, mix_batch
from tl_research.data.augment.rand_augment import MAX_MAGNITUDE, rand_augment
from tl_research.data.decode import BACKGROUND, Resize, decode_image, fit
from tl_research.data.pixel_range import AS_STORED, PixelRange
from tl_research.recipe import Count, Seed, Share, recipe

AUGMENT_VERSION = "39f5d48aeabd7eb5"
"""Change it to any other text whenever the pixels of an augmented image change, here or in `rand_augment`: other images
are then drawn, and stored versions no longer used. (The first value is the hash of both files at commit aeace94, so
that the same images are drawn as then.)"""

Alpha = Annotated[float, Field(ge=0)]


@recipe
class Augment:
    """Random changes of images and batches; the defaults change nothing.

    `flip` mirrors half of the images. `crop` cuts out at least this share of the area, with an aspect ratio between 3/4
    and 4/3 of the image's (Szegedy et al. 2015, arXiv 1409.4842). `rotate` is the largest angle in degrees, either way.
    `brightness`, `contrast` and `saturation` scale by up to this much: 0.2 is 0.8 to 1.2; `hue` is the largest shift as
    a share of the colour circle. `rand_augment` operations of magnitude `rand_magnitude` of 30 follow (Cubuk et al.
    2019, arXiv 1909.13719), and with probability `erase` a rectangle is filled with noise (Zhong et al. 2017, arXiv
    1708.04896). `mixup` and `cutmix` are the alpha of the Beta distribution by which training batches are mixed; if
    both are set, each batch uses one (Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899).

    Pillow computes all this image by image: Keras' layers in `tf.data` take 1.7 times as long for light.yaml and ten
    times for strong.yaml, because their RandAugment computes every operation and keeps one, the same for a whole batch
    (`python -m benchmarks augment`). Nor are they a pure function of image and draw key.
    """

    flip: bool = False
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rand_augment: Count = 0
    rand_magnitude: Annotated[float, Field(ge=0, le=MAX_MAGNITUDE)] = 9.0
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    seed: Seed = 0

    @property
    def changes_nothing(self) -> bool:
        """Tell whether no image is changed and no batch mixed."""
        return not self.changes_images and not self.mixes

    @property
    def changes_images(self) -> bool:
        """Tell whether single images are changed."""
        return self != Augment(rand_magnitude=self.rand_magnitude, mixup=self.mixup, cutmix=self.cutmix, seed=self.seed)

    @property
    def mixes(self) -> bool:
        """Tell whether images of a training batch, and their targets, are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def digest(self, image: bytes, draw_key: object) -> bytes:
        """Return a SHA-256 for one augmented version of an image: its random seed and its key in stores. `draw_key` is
        the number of the view, or (seed, epoch). Mixing happens later and has no influence."""
        about = asdict(replace(self, mixup=0.0, cutmix=0.0))
        drawn = json.dumps([AUGMENT_VERSION, about, draw_key], sort_keys=True)
        return hashlib.sha256(image + drawn.encode()).digest()

    def mix(self, pixels: np.ndarray, targets: np.ndarray, draw_key: tuple[int, int, int]) -> Mixed:
        """Mix a training batch's images and targets, float32 `(b, k)`, as a pure function of both and of `draw_key`:
        (seed, epoch, number of the batch)."""
        seed, epoch, number = draw_key
        # Counted from 1: to NumPy a seed that ends in 0 equals the one without it, which shuffles another epoch.
        rng = np.random.default_rng((self.seed, seed, epoch, number + 1))
        return mix_batch(pixels, targets, rng, mixup=self.mixup, cutmix=self.cutmix)

    def apply(self, image: Image.Image, size: int, resize: Resize, version: bytes) -> Image.Image:
        """Compute the version of an upright RGB image that belongs to a digest, `size` x `size`."""
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
        if self.hue:
            image = _turn_hue(image, rng.uniform(-self.hue, self.hue))
        image = rand_augment(image, self.rand_augment, self.rand_magnitude, rng)
        if self.erase and rng.random() < self.erase:
            image = _erased(image, rng)
        return image


def augmented_pixels(
    content: bytes,
    size: int,
    resize: Resize,
    augment: Augment,
    version: bytes,
    pixel_range: PixelRange = AS_STORED,
) -> np.ndarray:
    """Decode an image and augment it: uint8 `(size, size, 3)`. Raises `UndecodableError`."""
    image = decode_image(content, math.ceil(2 * size / math.sqrt(augment.crop)), pixel_range)
    return np.asarray(augment.apply(image, size, resize, version))


def _box(size: tuple[int, int], least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    area = rng.uniform(least, 1)
    widest = math.log(min(4 / 3, 1 / area))  # beyond this a side would not fit, and clipping it would reduce the area
    ratio = math.exp(rng.uniform(-widest, widest))
    w = min(math.ceil(width * math.sqrt(area * ratio)), width)
    h = min(math.ceil(height * math.sqrt(area / ratio)), height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h


def _turn_hue(image: Image.Image, by: float) -> Image.Image:
    """Shift the hue by a share of the circle at constant luma (`hueRotate` of the W3C's Filter Effects); greys stay. A
    matrix takes a sixth of the time of a conversion to HSV and back."""
    luma = np.array([0.213, 0.715, 0.072])
    across = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    turn = luma + math.cos(2 * math.pi * by) * (np.eye(3) - luma) + math.sin(2 * math.pi * by) * across
    return image.convert("RGB", tuple(np.column_stack([turn, np.zeros(3)]).ravel()))


def _erased(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Fill a rectangle of 2 to 33 % of the area, aspect ratio 0.3 to 3.3, with noise."""
    (width, height), area = image.size, rng.uniform(0.02, 0.33)
    widest = math.log(min(3.3, 1 / area))  # beyond this a side would not fit
    ratio = math.exp(rng.uniform(-widest, widest))
    w, h = max(1, round(width * math.sqrt(area * ratio))), max(1, round(height * math.sqrt(area / ratio)))
    noise = Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
    image.paste(noise, (int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))))
    return image
