"""Paint with numpy: smooth shapes lit from one side, procedural textures, soft shadows. Colours are RGB, 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

Array = np.ndarray
Colour = tuple[float, float, float] | Array


def noise(shape: tuple[int, int], cells: float, rng: np.random.Generator, octaves: int = 3) -> Array:
    """Draw smooth value noise `(h, w)`, about -1 to 1, with `cells` of the coarsest octave along the longer side."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(max(shape) / (cells * 2**octave), 1.0)
        grid = rng.random((int(height / step) + 2, int(width / step) + 2), dtype=np.float32) * 2 - 1
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) / 2**octave
    return total / 1.5


def blur(values: Array, radius: float) -> Array:
    """Blur a mask `(h, w)` in 0 to 1 with a Gaussian."""
    image = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


@dataclass
class Patch:
    """The part of a canvas around an object, with the object's coordinates: `u` along it, `v` across it; 1 unit is
    `scale` pixels."""

    rows: slice
    columns: slice
    u: Array
    v: Array
    scale: float
    centre: tuple[float, float]
    angle: float

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.u.shape

    def capsule(self, length: float, radius: float, *, bend: float = 0.0, u0: float = 0.0, v0: float = 0.0) -> Array:
        """Compute the distance from the axis in radii, below 1 inside a rod with round ends, bent to a parabola."""
        u, v = self.u - u0, self.v - v0 - bend * (self.u - u0) ** 2
        return np.hypot(np.maximum(np.abs(u) - length, 0), v) / radius

    def ellipse(self, a: float, b: float, *, u0: float = 0.0, v0: float = 0.0) -> Array:
        """Compute the distance from the centre in radii, below 1 inside."""
        return np.hypot((self.u - u0) / a, (self.v - v0) / b)

    def line(self, u: Array, v: Array, *, reach: float) -> Array:
        """Compute the distance in units from a line through close points; exact up to `reach`."""
        far = np.full(self.shape, 2 * reach, np.float32)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        columns = self.centre[0] + self.scale * (u * cos - v * sin) - self.columns.start
        rows = self.centre[1] + self.scale * (u * sin + v * cos) - self.rows.start
        margin = int(reach * self.scale) + 1
        for row, column, u0, v0 in zip(rows.astype(int), columns.astype(int), u, v, strict=True):
            near = tuple(slice(max(at - margin, 0), max(at + margin + 2, 0)) for at in (row, column))
            part = far[near]
            np.minimum(part, np.hypot(self.u[near] - np.float32(u0), self.v[near] - np.float32(v0)), out=part)
        return far

    def edge(self, distance: Array, radius: float) -> Array:
        """Convert a distance in radii to a mask with an edge two pixels wide."""
        return np.clip((1 - distance) * radius * self.scale / 2 + 0.5, 0, 1)


@dataclass
class Canvas:
    """A picture in progress, `(h, w, 3)`, with the direction of its light and the ambient share."""

    pixels: Array
    rng: np.random.Generator
    light: Array = field(init=False)
    ambient: float = field(init=False)

    def __post_init__(self) -> None:
        direction, height = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0.7, 1.6)
        light = np.array([np.cos(direction), np.sin(direction), height])
        self.light = (light / np.linalg.norm(light)).astype(np.float32)
        self.ambient = float(self.rng.uniform(0.35, 0.6))

    @property
    def size(self) -> float:
        """Return the shorter side in pixels."""
        return float(min(self.pixels.shape[:2]))

    def patch(self, x: float, y: float, angle: float, scale: float, reach: float) -> Patch:
        """Make coordinates around `(x, y)`, turned by `angle` (radians), up to `reach` units."""
        height, width = self.pixels.shape[:2]
        far = reach * scale
        rows = slice(int(np.clip(y - far, 0, height - 2)), int(np.clip(y + far + 1, 2, height)))
        columns = slice(int(np.clip(x - far, 0, width - 2)), int(np.clip(x + far + 1, 2, width)))
        dy = (np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(y))[:, None] / np.float32(scale)
        dx = (np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(x))[None] / np.float32(scale)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return Patch(rows, columns, dx * cos + dy * sin, dy * cos - dx * sin, scale, (x, y), angle)

    def part(self, patch: Patch, u0: float, v0: float, reach: float) -> Patch:
        """Make a smaller patch around a point of another, so that small objects are cheap."""
        cos, sin = np.cos(patch.angle), np.sin(patch.angle)
        x = patch.centre[0] + patch.scale * (u0 * cos - v0 * sin)
        y = patch.centre[1] + patch.scale * (u0 * sin + v0 * cos)
        return self.patch(x, y, patch.angle, patch.scale, reach)

    def shadow(self, patch: Patch, mask: Array, depth: float, strength: float = 0.5) -> None:
        """Darkens what lies under a mask, away from the light, softly; `depth` in the patch's units."""
        far = depth * patch.scale
        dx, dy = (round(-far * float(part)) for part in self.light[:2])
        box = _box(mask, margin=int(3 * far) + 3)
        soft = blur(np.roll(mask[box], (dy, dx), (0, 1)), max(far * 0.6, 1.0))
        under = self.pixels[patch.rows, patch.columns][box]
        under *= (1 - strength * soft)[..., None]

    def solid(
        self,
        patch: Patch,
        distance: Array,
        radius: float,
        colour: Colour,
        *,
        gloss: float = 0.1,
        relief: Array | None = None,
        flat: float = 1.0,
        shadow: float = 0.3,
    ) -> None:
        """Paint a rounded, lit body: `distance` in radii, `radius` in units.

        `colour` may vary by pixel, `relief` (units) roughens the surface, `flat` below 1 flattens it, `shadow` is the
        height above the ground.
        """
        mask = patch.edge(distance, radius)
        if shadow:
            self.shadow(patch, mask, shadow * radius)
        height = np.sqrt(np.clip(1.02 - distance**2, 0, 1)) * (radius * flat)
        self.lit(patch, mask, height if relief is None else height + relief, colour, gloss)

    def lit(self, patch: Patch, mask: Array, height: Array, colour: Colour, gloss: float = 0.0) -> None:
        """Paint through a mask with the shading of a height map (units)."""
        box = _box(mask)
        slope_y, slope_x = np.gradient((height * np.float32(patch.scale))[box])
        facing = self.light[2] - slope_x * self.light[0] - slope_y * self.light[1]
        facing = np.clip(facing / np.sqrt(slope_x**2 + slope_y**2 + 1), 0, 1)
        colour = np.asarray(colour, np.float32)
        paint = (colour if colour.ndim == 1 else colour[box]) * (self.ambient + (1.15 - self.ambient) * facing)[
            ..., None
        ]
        if gloss:
            paint += (gloss * np.clip((facing - 0.86) / 0.14, 0, 1) ** 3)[..., None]
        under = self.pixels[patch.rows, patch.columns][box]
        under += mask[box][..., None] * (paint - under)

    def blend(self, patch: Patch, mask: Array, colour: Colour) -> None:
        """Paint one flat colour through a mask `(h, w)` in 0 to 1."""
        box = _box(mask)
        under = self.pixels[patch.rows, patch.columns][box]
        under += mask[box][..., None] * (np.asarray(colour, np.float32) - under)


def _box(mask: Array, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns that a mask covers, at least two of each, because slopes need a neighbour."""
    spans = []
    for axis, size in ((1, mask.shape[0]), (0, mask.shape[1])):
        touched = np.flatnonzero(mask.any(axis=axis))
        start, stop = (touched[0], touched[-1] + 1) if len(touched) else (0, 0)
        start = max(min(int(start) - margin, size - 2), 0)
        spans.append(slice(start, max(int(stop) + margin, start + 2)))
    return spans[0], spans[1]


def mix(low: Colour, high: Colour, share: Array) -> Array:
    """Interpolate between two colours by a share `(h, w)`, clipped to 0 to 1."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low + np.clip(share, 0, 1).astype(np.float32)[..., None] * (high - low)
