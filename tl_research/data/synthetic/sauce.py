"""Paint hot dogs that differ only in the course of their sauce: one line, two parallel ones, or two that cross."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tl_research.data.synthetic.food import KETCHUP, MAYO, MUSTARD, bun, crumbs, sausage, tint
from tl_research.data.synthetic.paint import Array, Canvas, Patch
from tl_research.data.synthetic.scenes import photograph, table

# For each class: number of turns, width, and for each line its offset and the side that it starts on. Turns and widths
# are chosen so that stripes are about equally close in all classes.
COURSES: dict[str, tuple[float, float, tuple[tuple[float, float], ...]]] = {
    "crossed": (0.65, 1.0, ((0.0, 1.0), (0.0, -1.0))),
    "parallel": (0.9, 0.5, ((-0.5, 1.0), (0.5, 1.0))),
    "single": (1.0, 1.0, ((0.0, 1.0),)),
}
FINEST = 1000  # points per line


def course(name: str, length: float, swing: float, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Draw lines of sauce as equidistant points `(u, v)`: between zigzag and wave, with a random phase."""
    often, wide, lines = COURSES[name]
    u = np.linspace(-length, length, FINEST)
    turns = often * rng.uniform(4, 7.5) * u / (2 * length) + rng.random()
    shape = (4 * np.abs(turns % 1 - 0.5) - 1) * (bow := rng.random()) + np.cos(2 * np.pi * turns) * (1 - bow)
    drawn = []
    for offset, side in lines:
        v = swing * (offset + side * wide * shape)
        way = np.concatenate([[0], np.cumsum(np.hypot(np.diff(u), np.diff(v)))])
        even = np.linspace(0, way[-1], FINEST // 3)
        drawn.append((np.interp(even, way, u), np.interp(even, way, v)))
    return drawn


def dressed(canvas: Canvas, patch: Patch, name: str) -> None:
    """Paint a hot dog from above with one or two lines of sauce; colour and amount do not depend on the class."""
    rng = canvas.rng
    length, radius, bend = rng.uniform(0.65, 0.85), rng.uniform(0.34, 0.46), rng.uniform(-0.12, 0.12)
    thick, aside = radius * rng.uniform(0.46, 0.58), rng.uniform(-0.05, 0.05)
    bun(canvas, patch, length, radius, bend, open_=True)
    if rng.random() < 0.3:
        crumbs(canvas, patch, (0.35, 0.58, 0.18), 24, (length, radius * 0.55), 0.1)
    sausage(canvas, patch, length * rng.uniform(1.0, 1.22), thick, bend=bend, v0=aside)
    lines = course(name, length * rng.uniform(0.9, 1.02), thick * rng.uniform(0.7, 0.9), rng)
    amount = length * rng.uniform(0.22, 0.36)
    width = float(amount / sum(np.hypot(np.diff(u), np.diff(v)).sum() for u, v in lines)) / 2
    distance = np.minimum.reduce([patch.line(u, v + aside + bend * u**2, reach=2 * width) / width for u, v in lines])
    colour = tint((MUSTARD, KETCHUP, MAYO)[rng.integers(3)], rng)
    canvas.solid(patch, distance, width, colour, gloss=0.35, shadow=0.5)
    if rng.random() < 0.35:
        bits = [(0.93, 0.90, 0.80), (0.35, 0.55, 0.15), (0.60, 0.25, 0.12)][rng.integers(3)]
        crumbs(canvas, patch, bits, int(rng.integers(10, 25)), (length, thick * 0.5), 0.03)


def sauce_scene(name: str, rng: np.random.Generator) -> Image.Image:
    """Paint one photograph of a hot dog of this class, with the demo's tables, lights and clutter."""
    canvas, (x, y, scale), size = table(rng)
    dressed(canvas, canvas.patch(x, y, rng.uniform(0, 2 * np.pi), scale, 1.5), name)
    return photograph(canvas.pixels, rng).resize(size, Image.Resampling.BICUBIC)
