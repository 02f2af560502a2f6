"""Paint scenes: a table, clutter, the food, then a camera's light, blur and grain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from tl_research.data.synthetic.food import CRUST, KETCHUP, LOOKALIKES, MAYO, MUSTARD, hot_dog, tint
from tl_research.data.synthetic.paint import Array, Canvas, mix, noise

Shape = tuple[int, int]
LONG_SIDE = 300  # pixels painted along the longer side, whatever the photograph's final size


def wood(shape: Shape, rng: np.random.Generator) -> Array:
    """Paint planks with their grain."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    across, along = (y, x) if rng.random() < 0.5 else (x, y)
    grain = np.sin(across * rng.uniform(0.15, 0.4) + 6 * noise(shape, 4, rng) + along * 0.01)
    base = tint([(0.62, 0.42, 0.25), (0.42, 0.27, 0.17), (0.75, 0.60, 0.42), (0.50, 0.46, 0.42)][rng.integers(4)], rng)
    width = rng.uniform(50, 110)
    gap = ((across + rng.uniform(0, width)) % width) < 2
    return mix(base, base * 0.65, 0.4 + 0.3 * grain + 0.2 * noise(shape, 30, rng)) * (1 - 0.5 * gap[..., None])


def cloth(shape: Shape, rng: np.random.Generator) -> Array:
    """Paint a checked tablecloth, turned."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    a, side = rng.uniform(0, np.pi / 2), rng.uniform(16, 44)
    u, v = (x * np.cos(a) + y * np.sin(a)) / side, (y * np.cos(a) - x * np.sin(a)) / side
    check = ((u % 1 < 0.5).astype(np.float32) + (v % 1 < 0.5)) / 2
    colour = tint(
        [(0.70, 0.12, 0.12), (0.18, 0.32, 0.60), (0.20, 0.45, 0.28), (0.75, 0.60, 0.25)][rng.integers(4)], rng
    )
    return (
        mix((0.92, 0.91, 0.88), colour, check + 0.08 * noise(shape, 60, rng))
        * (1 + 0.08 * noise(shape, 4, rng))[..., None]
    )


def plain(shape: Shape, rng: np.random.Generator) -> Array:
    """Paint paper, slate or marble."""
    base = [(0.88, 0.86, 0.82), (0.30, 0.31, 0.33), (0.80, 0.72, 0.60), (0.55, 0.60, 0.62), (0.70, 0.50, 0.38)]
    colour = tint(base[rng.integers(5)], rng, 0.1)
    veins = np.abs(noise(shape, 5, rng)) < 0.04 * rng.integers(0, 2)
    return mix(colour, colour * 0.75, 0.4 + 0.5 * noise(shape, 6, rng) + 0.15 * noise(shape, 80, rng) + 0.5 * veins)


def grass(shape: Shape, rng: np.random.Generator) -> Array:
    """Paint a lawn."""
    blades = noise(shape, 70, rng, octaves=2) + 0.5 * noise(shape, 8, rng)
    return mix(tint((0.20, 0.36, 0.10), rng), tint((0.50, 0.62, 0.25), rng), 0.5 + 0.5 * blades)


GROUNDS: list[Callable[[Shape, np.random.Generator], Array]] = [wood, wood, cloth, plain, plain, grass]


def plate(canvas: Canvas, x: float, y: float, scale: float) -> None:
    """Paint a plate or a paper tray under the food."""
    rng = canvas.rng
    patch = canvas.patch(x, y, rng.uniform(0, np.pi), scale, 1.9)
    colour = tint(
        [(0.93, 0.93, 0.91), (0.80, 0.84, 0.88), (0.55, 0.35, 0.25), (0.35, 0.38, 0.42)][rng.integers(4)], rng
    )
    if rng.random() < 0.7:
        round_ = patch.ellipse(1.5, rng.uniform(1.2, 1.5))
        canvas.solid(patch, round_, 1.4, colour, flat=0.06, gloss=0.1, shadow=0.08)
        canvas.lit(patch, patch.edge(round_ / 0.72, 1.0), -0.05 * np.clip(1 - round_, 0, 1), colour * 0.97)
    else:
        tray = np.maximum(np.abs(patch.u) / 1.4, np.abs(patch.v) / 0.85)
        canvas.solid(patch, tray, 0.9, colour, flat=0.04, shadow=0.1)


def clutter(canvas: Canvas, x: float, y: float, scale: float) -> None:
    """Paint an unrelated object, in pictures of both classes alike."""
    rng = canvas.rng
    patch = canvas.patch(x, y, rng.uniform(0, 2 * np.pi), scale, 1.3)
    kind = rng.integers(7)
    if kind == 0:  # a cup from above
        cup = patch.ellipse(0.5, 0.5)
        canvas.solid(
            patch, cup, 0.5, tint([(0.9, 0.9, 0.9), (0.7, 0.1, 0.1), (0.2, 0.3, 0.5)][rng.integers(3)], rng), flat=0.3
        )
        canvas.solid(patch, cup / 0.8, 0.4, tint((0.25, 0.13, 0.07), rng), flat=-0.2, gloss=0.3, shadow=0)
    elif kind == 1:  # tomato slices
        for u0 in (-0.4, 0.3):
            slice_ = patch.ellipse(0.35, 0.33, u0=u0)
            seeds = np.sin(5 * np.arctan2(patch.v, patch.u - u0)) * (slice_ > 0.25) * (slice_ < 0.75) > 0.4
            canvas.solid(
                patch, slice_, 0.33, mix(tint(KETCHUP, rng), (0.90, 0.55, 0.30), seeds * 0.8), flat=0.2, gloss=0.3
            )
    elif kind == 2:  # leaves
        for _ in range(4):
            leaf = patch.ellipse(0.4, 0.2, u0=rng.normal(0, 0.3), v0=rng.normal(0, 0.3)) + 0.3 * noise(
                patch.shape, 9, rng
            )
            canvas.solid(
                patch, leaf, 0.2, tint((0.36, 0.58, 0.20), rng, 0.1), relief=0.04 * noise(patch.shape, 20, rng)
            )
    elif kind == 3:  # fries
        for _ in range(9):
            stick = patch.capsule(0.4, 0.06, u0=rng.normal(0, 0.2), v0=rng.normal(0, 0.35), bend=rng.normal(0, 0.4))
            canvas.solid(patch, stick, 0.06, tint((0.93, 0.76, 0.33), rng), shadow=0.6)
    elif kind == 4:  # a fork or knife
        for v0 in (-0.09, 0, 0.09):
            canvas.solid(patch, patch.capsule(0.35, 0.03, u0=0.7, v0=v0), 0.03, (0.70, 0.71, 0.73), gloss=0.5)
        canvas.solid(patch, patch.capsule(0.75, 0.06, u0=-0.4), 0.06, (0.66, 0.67, 0.69), gloss=0.5)
    elif kind == 5:  # spilt sauce
        blob = patch.ellipse(0.4, 0.3) + 0.5 * noise(patch.shape, 5, rng)
        canvas.solid(
            patch, blob, 0.3, tint([KETCHUP, MUSTARD, MAYO][rng.integers(3)], rng), gloss=0.4, flat=0.3, shadow=0.1
        )
    else:  # a roll
        roll = patch.ellipse(0.5, 0.42)
        canvas.solid(patch, roll, 0.42, mix(tint(CRUST, rng), (0.55, 0.30, 0.12), 0.5 - roll / 2), gloss=0.1)


def table(rng: np.random.Generator) -> tuple[Canvas, tuple[float, float, float], Shape]:
    """Paint a laid table without food; return the canvas, the food's `(x, y, scale)`, and the photograph's size."""
    width, height = (int(side) for side in rng.integers(260, 701, 2))
    width, height = max(width, height * 2 // 5, 200), max(height, width * 2 // 5, 200)
    shrink = min(1.0, LONG_SIDE / max(width, height))
    shape = (int(height * shrink), int(width * shrink))
    canvas = Canvas(GROUNDS[rng.integers(len(GROUNDS))](shape, rng).astype(np.float32), rng)
    x, y = shape[1] * rng.uniform(0.38, 0.62), shape[0] * rng.uniform(0.38, 0.62)
    scale = canvas.size * rng.uniform(0.38, 0.56)
    if rng.random() < 0.55:
        plate(canvas, x, y, scale)
    for _ in range(rng.integers(0, 4)):
        side = rng.uniform(0, 2 * np.pi)
        away = rng.uniform(0.9, 1.4) * canvas.size * 0.55
        clutter(canvas, x + away * np.cos(side), y + away * np.sin(side), canvas.size * rng.uniform(0.14, 0.26))
    return canvas, (x, y, scale), (width, height)


def scene(is_hot_dog: bool, rng: np.random.Generator) -> Image.Image:
    """Paint one photograph, each side 200 to 700 pixels."""
    canvas, (x, y, scale), size = table(rng)
    painter = hot_dog if is_hot_dog else LOOKALIKES[rng.integers(len(LOOKALIKES))]
    angle = rng.uniform(-0.5, 0.5) if painter.__name__ in ("burger", "taco") else rng.uniform(0, 2 * np.pi)
    painter(canvas, canvas.patch(x, y, angle, scale, 1.5))
    return photograph(canvas.pixels, rng).resize(size, Image.Resampling.BICUBIC)


def photograph(pixels: Array, rng: np.random.Generator) -> Image.Image:
    """Apply a camera's white balance, exposure, vignette, focus and grain."""
    y = np.linspace(-1, 1, pixels.shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None]
    lamp = 1 - np.float32(rng.uniform(0, 0.35)) * np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
    warmth = rng.normal(0, 0.05)
    balance = np.array([1 + warmth, 1 + rng.normal(0, 0.02), 1 - warmth], np.float32) * np.float32(
        rng.uniform(0.75, 1.25)
    )
    seen = pixels * (lamp.astype(np.float32)[..., None] * balance)
    seen += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.04))
    gamma = rng.uniform(0.8, 1.25)
    image = Image.fromarray((np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
