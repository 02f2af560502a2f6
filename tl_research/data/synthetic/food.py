"""Paint hot dogs and similar things. Each function paints one object, about 2 units long."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tl_research.data.synthetic.paint import Array, Canvas, Colour, Patch, mix, noise

CRUST, TOAST, CRUMB = (0.80, 0.55, 0.27), (0.52, 0.28, 0.11), (0.95, 0.86, 0.66)
MUSTARD, KETCHUP, MAYO = (0.90, 0.68, 0.08), (0.72, 0.09, 0.05), (0.95, 0.91, 0.80)
SAUSAGES = [(0.62, 0.24, 0.13), (0.72, 0.34, 0.20), (0.50, 0.20, 0.12), (0.78, 0.42, 0.28)]
Painter = Callable[[Canvas, Patch], None]


def tint(colour: Colour, rng: np.random.Generator, spread: float = 0.07) -> Array:
    """Vary a colour slightly."""
    return np.clip(np.asarray(colour) * rng.uniform(1 - 2 * spread, 1 + spread) + rng.normal(0, spread / 2, 3), 0, 1)


def baked(
    patch: Patch, distance: Array, rng: np.random.Generator, light: Colour = CRUST, dark: Colour = TOAST
) -> Array:
    """Colour bread: uneven, and darkest where it is highest."""
    uneven = noise(patch.shape, 9, rng)
    return mix(tint(light, rng, 0.05), tint(dark, rng, 0.05), 0.75 - 0.8 * distance + 0.35 * uneven)


def squiggle(
    canvas: Canvas, patch: Patch, colour: Colour, length: float, *, width: float, v0: float = 0.0, bend: float = 0.0
) -> None:
    """Paint a line of sauce, straight or wavy."""
    rng = canvas.rng
    swing, waves = rng.choice([0.0, 0.12, 0.2]), rng.uniform(9, 20)
    centre = v0 + bend * patch.u**2 + swing * np.sin(waves * patch.u + rng.uniform(0, 6))
    steep = np.sqrt(1 + (swing * waves * np.cos(waves * patch.u)) ** 2)
    distance = np.maximum(np.abs(patch.v - centre) / (width * np.minimum(steep, 2.5)), np.abs(patch.u) / length)
    canvas.solid(patch, distance, width, tint(colour, rng), gloss=0.35, shadow=0.5)


def sausage(canvas: Canvas, patch: Patch, length: float, radius: float, *, bend: float = 0.0, v0: float = 0.0) -> None:
    """Paint a shiny sausage, often with grill marks."""
    rng = canvas.rng
    distance = patch.capsule(length, radius, bend=bend, v0=v0)
    skin = tint(SAUSAGES[rng.integers(len(SAUSAGES))], rng)
    colour = mix(skin, skin * 0.7, 0.4 + 0.6 * noise(patch.shape, 12, rng))
    if rng.random() < 0.5:
        marks = np.sin((patch.u + 0.5 * patch.v) * rng.uniform(11, 16)) > 0.72
        colour = mix(colour, skin * 0.35, marks * (distance < 0.85) * 0.8)
    canvas.solid(patch, distance, radius, colour, gloss=0.45, shadow=0.4)


def crumbs(canvas: Canvas, patch: Patch, colour: Colour, count: int, spread: tuple[float, float], size: float) -> None:
    """Strew bits along the object: onions, relish, herbs, bacon."""
    rng = canvas.rng
    for _ in range(count):
        u0, v0 = rng.uniform(-spread[0], spread[0]), rng.normal(0, spread[1])
        bit = canvas.part(patch, u0, v0, 2 * size)
        distance = bit.ellipse(size * rng.uniform(0.6, 1.5), size * rng.uniform(0.5, 1))
        canvas.blend(bit, bit.edge(distance, size), tint(colour, rng, 0.12))


def bun(canvas: Canvas, patch: Patch, length: float, radius: float, bend: float, *, open_: bool) -> None:
    """Paint a long bun from above, split if `open_`, sometimes with seeds."""
    rng = canvas.rng
    distance = patch.capsule(length, radius, bend=bend)
    rough = 0.012 * noise(patch.shape, 40, rng)
    canvas.solid(patch, distance, radius, baked(patch, distance, rng), gloss=0.15, relief=rough, flat=0.8, shadow=0.45)
    if open_:
        inside = patch.capsule(length * 1.02, radius * rng.uniform(0.5, 0.62), bend=bend)
        canvas.solid(
            patch,
            inside,
            radius * 0.55,
            mix(CRUMB, CRUST, 0.3 + 0.4 * noise(patch.shape, 30, rng)),
            flat=-0.5,
            shadow=0,
        )
    if rng.random() < 0.25:
        crumbs(canvas, patch, (0.95, 0.88, 0.70), 26, (length, radius * 0.4), 0.035)


def hot_dog(canvas: Canvas, patch: Patch) -> None:
    """Paint a sausage in a split bun, from above, or from the side behind the near half of the bun."""
    rng = canvas.rng
    length, radius, bend = rng.uniform(0.65, 0.85), rng.uniform(0.34, 0.46), rng.uniform(-0.12, 0.12)
    thick = radius * rng.uniform(0.42, 0.56)
    bun(canvas, patch, length, radius, bend, open_=True)
    if rng.random() < 0.3:
        crumbs(canvas, patch, (0.35, 0.58, 0.18), 24, (length, radius * 0.55), 0.1)
    aside = rng.uniform(-0.06, 0.06)
    sausage(canvas, patch, length * rng.uniform(1.0, 1.22), thick, bend=bend, v0=aside)
    for colour in rng.permutation(np.array([MUSTARD, KETCHUP, MAYO]))[: rng.choice(3, p=[0.15, 0.55, 0.3])]:
        squiggle(canvas, patch, colour, length * 1.02, width=rng.uniform(0.03, 0.055), v0=aside, bend=bend)
    if rng.random() < 0.35:
        bits = [(0.93, 0.90, 0.80), (0.35, 0.55, 0.15), (0.60, 0.25, 0.12)][rng.integers(3)]
        crumbs(canvas, patch, bits, int(rng.integers(20, 50)), (length, thick * 0.5), 0.035)
    if rng.random() < 0.45:
        front = patch.capsule(length, radius * 0.5, bend=bend, v0=aside + thick * 0.75 + radius * 0.2)
        canvas.solid(patch, front, radius * 0.5, baked(patch, front, rng), gloss=0.15, shadow=0.3)


def empty_bun(canvas: Canvas, patch: Patch) -> None:
    """Paint a long bun without sausage, closed or split, sometimes with lettuce or cream."""
    rng = canvas.rng
    length, radius, bend = rng.uniform(0.6, 0.85), rng.uniform(0.34, 0.46), rng.uniform(-0.12, 0.12)
    bun(canvas, patch, length, radius, bend, open_=bool(rng.random() < 0.6))
    if rng.random() < 0.4:
        filling = [(0.35, 0.58, 0.18), (0.96, 0.93, 0.86), (0.85, 0.75, 0.45)][rng.integers(3)]
        crumbs(canvas, patch, filling, 40, (length * 0.9, radius * 0.2), 0.1)


def eclair(canvas: Canvas, patch: Patch) -> None:
    """Paint choux with a glaze and sometimes a line of icing."""
    rng = canvas.rng
    length, radius = rng.uniform(0.7, 0.9), rng.uniform(0.28, 0.36)
    distance = patch.capsule(length, radius)
    canvas.solid(patch, distance, radius, baked(patch, distance, rng), flat=0.9)
    glaze = [(0.18, 0.09, 0.05), (0.30, 0.16, 0.08), (0.93, 0.86, 0.78), (0.80, 0.62, 0.35)][rng.integers(4)]
    wavy = patch.capsule(length, radius * 0.72) + 0.08 * noise(patch.shape, 10, rng)
    canvas.solid(patch, wavy, radius * 0.72, tint(glaze, rng), gloss=0.5, shadow=0.1)
    if rng.random() < 0.3:
        squiggle(canvas, patch, MAYO, length * 0.9, width=0.022)


def baguette(canvas: Canvas, patch: Patch) -> None:
    """Paint a loaf with slashes."""
    rng = canvas.rng
    length, radius = rng.uniform(0.85, 1.0), rng.uniform(0.2, 0.3)
    distance = patch.capsule(length, radius)
    slash = np.sin((patch.u * 1.0 + patch.v * 0.9) * rng.uniform(7, 10)) > 0.75
    colour = mix(baked(patch, distance, rng), CRUMB, slash * (distance < 0.7) * 0.8)
    canvas.solid(patch, distance, radius, colour, relief=0.015 * noise(patch.shape, 50, rng) - 0.03 * slash)


def sausages(canvas: Canvas, patch: Patch) -> None:
    """Paint one to three sausages without a bun."""
    rng = canvas.rng
    count = int(rng.integers(1, 4))
    for number in range(count):
        v0 = (number - (count - 1) / 2) * 0.55
        sausage(canvas, patch, rng.uniform(0.6, 0.8), rng.uniform(0.14, 0.19), bend=rng.uniform(-0.2, 0.2), v0=v0)
    if rng.random() < 0.5:
        distance = patch.ellipse(0.25, 0.2, u0=rng.uniform(-0.6, 0.6), v0=0.75)
        canvas.solid(patch, distance, 0.2, tint([MUSTARD, KETCHUP][rng.integers(2)], rng), gloss=0.4, flat=0.5)


def banana(canvas: Canvas, patch: Patch) -> None:
    """Paint one to three bananas."""
    rng = canvas.rng
    for number in range(int(rng.integers(1, 4))):
        bend, radius = rng.uniform(0.3, 0.45), rng.uniform(0.17, 0.22)
        taper = radius * np.clip(1.15 - 0.55 * np.abs(patch.u) ** 3, 0.35, 1)
        distance = patch.capsule(0.85, 1.0, bend=bend, v0=number * 0.3 - 0.35) / taper
        spots = noise(patch.shape, 25, rng) > 0.75
        colour = mix(
            tint((0.90, 0.72, 0.16), rng), (0.35, 0.22, 0.08), np.clip(np.abs(patch.u) * 6 - 5.1, 0, 1) + 0.5 * spots
        )
        canvas.solid(patch, distance, radius, colour, gloss=0.12)


def burger(canvas: Canvas, patch: Patch) -> None:
    """Paint a burger from the side."""
    rng = canvas.rng
    layers: list[tuple[float, float, float, Colour]] = [
        (0.42, 0.72, 0.22, CRUST),
        (0.22, 0.74, 0.15, tint((0.32, 0.16, 0.09), rng)),
        (0.08, 0.78, 0.09, tint((0.95, 0.70, 0.15), rng)),
        (-0.02, 0.74, 0.08, tint(KETCHUP, rng)),
        (-0.12, 0.80, 0.10, tint((0.38, 0.60, 0.20), rng)),
    ]
    for v0, half, thick, colour in layers:
        ragged = 0.10 * noise(patch.shape, 14, rng)
        distance = np.maximum(np.abs(patch.u) / half, 0) ** 6 + ((patch.v - v0) / thick) ** 2 + ragged
        canvas.solid(patch, np.sqrt(np.abs(distance)), thick, colour, gloss=0.15)
    dome = np.hypot(patch.u / 0.76, np.where(patch.v < -0.15, (patch.v + 0.15) / 0.48, (patch.v + 0.15) / 0.09))
    canvas.solid(patch, dome, 0.4, baked(patch, dome, rng), gloss=0.3)
    if rng.random() < 0.7:
        for _ in range(18):
            seed = canvas.part(patch, rng.normal(0, 0.3), rng.uniform(-0.52, -0.28), 0.06)
            canvas.blend(seed, seed.edge(seed.ellipse(0.035, 0.02), 0.02), (0.96, 0.90, 0.72))


def pizza(canvas: Canvas, patch: Patch) -> None:
    """Paint a pizza or a slice of one."""
    rng = canvas.rng
    radius = patch.ellipse(1, 1) + 0.02 * noise(patch.shape, 12, rng)
    slice_ = np.pi  # half the angle of the remaining disc
    if rng.random() < 0.5:
        slice_ = rng.uniform(0.35, 0.6)
        outside = np.abs(np.arctan2(patch.v, patch.u)) / slice_
        radius = np.maximum(radius, np.where(outside < 1, 0, 1 + (outside - 1) * np.hypot(patch.u, patch.v) * 3))
    canvas.solid(patch, radius, 0.95, baked(patch, radius - 0.4, rng), flat=0.15, shadow=0.06)
    cheese = mix(tint((0.93, 0.75, 0.36), rng), tint(KETCHUP, rng), 0.4 + 0.9 * noise(patch.shape, 14, rng))
    inner = patch.edge(radius / 0.86, 0.8)
    canvas.lit(patch, inner, 0.05 * noise(patch.shape, 18, rng), cheese, 0.15)
    topping = [(0.60, 0.12, 0.08), (0.20, 0.22, 0.10), (0.42, 0.58, 0.20)][rng.integers(3)]
    for _ in range(int(rng.integers(8, 18))):
        r, a = 0.75 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        piece = canvas.part(patch, r * np.cos(a), r * np.sin(a), 0.2)
        spot = piece.ellipse(0.13, 0.13)
        if slice_ < np.pi and abs(np.arctan2(np.sin(a), np.cos(a))) > slice_ - 0.2:
            continue
        canvas.lit(piece, piece.edge(spot, 0.13), 0.03 * (1 - np.clip(spot, 0, 1)), tint(topping, rng), 0.2)


def donut(canvas: Canvas, patch: Patch) -> None:
    """Paint a glazed ring."""
    rng = canvas.rng
    ring = np.abs(np.hypot(patch.u, patch.v * rng.uniform(1, 1.3)) - 0.55) / 0.33
    canvas.solid(patch, ring, 0.33, baked(patch, ring, rng))
    glaze = [(0.86, 0.52, 0.58), (0.28, 0.14, 0.07), (0.95, 0.90, 0.84), (0.85, 0.60, 0.25)][rng.integers(4)]
    canvas.solid(
        patch, ring * 1.25 + 0.12 * noise(patch.shape, 10, rng), 0.3, tint(glaze, rng), gloss=0.45, shadow=0.05
    )


def carrots(canvas: Canvas, patch: Patch) -> None:
    """Paint carrots with leaves."""
    rng = canvas.rng
    for number in range(int(rng.integers(1, 4))):
        v0 = (number - 1) * 0.38
        taper = 0.2 * np.clip(0.75 - 0.55 * patch.u, 0.12, 1.1)
        distance = patch.capsule(0.8, 1.0, v0=v0) / taper
        rings = 0.25 * (np.sin(patch.u * 40 + noise(patch.shape, 8, rng) * 3) > 0.8)
        canvas.solid(patch, distance, 0.15, mix(tint((0.90, 0.42, 0.10), rng), (0.65, 0.28, 0.08), rings), gloss=0.15)
        for _ in range(5):
            leaf = patch.capsule(0.22, 0.04, u0=-1.05, v0=v0 + rng.uniform(-0.15, 0.15), bend=rng.uniform(-1, 1))
            canvas.solid(patch, leaf, 0.04, tint((0.25, 0.48, 0.15), rng))


def taco(canvas: Canvas, patch: Patch) -> None:
    """Paint a folded shell with visible filling."""
    rng = canvas.rng
    upper = np.hypot(patch.u / 0.9, np.where(patch.v < 0.3, (patch.v - 0.3) / 0.85, (patch.v - 0.3) / 0.05))
    canvas.solid(patch, upper, 0.6, baked(patch, upper - 0.3, rng, (0.93, 0.75, 0.38), (0.80, 0.50, 0.18)), flat=0.3)
    for colour in ((0.35, 0.58, 0.18), (0.45, 0.20, 0.10), KETCHUP, (0.95, 0.80, 0.30)):
        for _ in range(12):
            a = rng.uniform(np.pi, 2 * np.pi)
            bit = canvas.part(patch, 0.82 * np.cos(a), 0.3 + 0.75 * np.sin(a), 0.2)
            canvas.solid(bit, bit.ellipse(0.10, 0.06), 0.06, tint(colour, rng, 0.1), shadow=0.3)
    lower = np.hypot(patch.u / 0.86, np.where(patch.v < 0.36, (patch.v - 0.36) / 0.68, (patch.v - 0.36) / 0.05))
    canvas.solid(patch, lower, 0.6, baked(patch, lower - 0.3, rng, (0.93, 0.75, 0.38), (0.80, 0.50, 0.18)), flat=0.3)


LOOKALIKES: list[Painter] = [
    empty_bun, eclair, baguette, sausages, banana, burger, burger, pizza, pizza, donut, donut, carrots, taco
]  # fmt: skip
