"""Find photographs that show the same picture, changed: cropped, turned, compressed, smaller, mirrored.

Features nominate, pixels decide. Features alone confuse two pictures of one kind of thing; pixels alone cannot be
compared for all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SIDE = 32
"""Pixels of a side of the small grey images that are compared."""

THRESHOLD = 1.65
"""Pairs count as duplicates whose cosine and correlation together are larger."""

NEAREST = 3
COMPONENTS = 128
SAMPLE = 5_000  # rows that the principal components are computed from
SPARE = 8  # candidates by components, of which the nearest by all features are kept
FEW = 500  # rows that tell the median cosine
TINY = 1e-12
FLAT = 1e-4  # least variance of the grey values, of 0 to 1
PLAIN = 10  # grey values that a plain background may vary by
LEAST_FOREGROUND, LEAST_OVERLAP = 0.1, 0.7  # shares of all pixels, and of the two foregrounds
MOST_HALVES = 5  # aspects beyond 2^2.5 count as that
BLOCK_NUMBERS = 2**22  # numbers in one block of products: 16 MB

SHIFTS = (-1.5, 0.0, 1.5)  # pixels
SCALES = (0.85, 0.92, 1.0, 1 / 0.92, 1 / 0.85)
TURNS = (-5.0, 0.0, 5.0)  # degrees
MARGIN = 2  # pixels at the border that do not count: a turned photograph has black corners

TYPICAL = 0.5
"""Two unrelated images have a smaller cosine under features that tell images apart."""


@dataclass(frozen=True)
class NearPair:
    """Two images, by their index, `first` < `second`; the score is cosine + correlation, at most 2."""

    first: int
    second: int
    score: float


def near_pairs(
    features: np.ndarray, greys: np.ndarray, aspects: np.ndarray, advance: Callable[[int], None] = lambda count: None
) -> list[NearPair]:
    """List pairs of near duplicates, the surest first.

    Args:
        features: `(n, d)`.
        greys: the images in grey, squashed to a square, uint8 `(n, SIDE, SIDE)`.
        aspects: height / width of the images before that, `(n,)`.
        advance: called with numbers of images done, which sum to n.
    """
    found: dict[tuple[int, int], float] = {}
    stretch = _stretch(features)
    for rows, neighbours, cosines in nominate(features):
        for row, others, values in zip(rows.tolist(), neighbours.tolist(), cosines.tolist(), strict=True):
            for other, cosine in zip(others, values, strict=True):
                pair, likeness = (min(row, other), max(row, other)), 1 - stretch * (1 - cosine)
                if pair not in found and likeness > THRESHOLD - 1:
                    found[pair] = likeness + best_correlation(greys[pair[0]], greys[pair[1]], aspects[pair[1]])
        advance(len(rows))
    pairs = [NearPair(*pair, round(score, 4)) for pair, score in found.items() if score > THRESHOLD]
    return sorted(pairs, key=lambda pair: -pair.score)


def _stretch(features: np.ndarray) -> float:
    """Return the factor of all distances (1 - cosine) that brings a median cosine above `TYPICAL` down to it: of some
    networks, as those with random weights, all rows are alike."""
    sample = features[np.random.default_rng(0).permutation(len(features))[:FEW]]
    sample = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), TINY)
    cosines = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    return max((1 - TYPICAL) / max(1 - float(np.median(cosines)), TINY), 1.0) if cosines.size else 1.0


def nominate(features: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for blocks of rows `(b,)` their nearest other rows `(b, 3)` and the cosines to these, in bounded memory."""
    norms = np.maximum(np.linalg.norm(features, axis=1), TINY)
    short = _components(features, norms)
    count = len(features)
    spare, nearest = min(SPARE, count - 1), min(NEAREST, count - 1)
    step = max(BLOCK_NUMBERS // count, 1)
    for start in range(0, count if nearest else 0, step):
        rows = np.arange(start, min(start + step, count))
        cosines = short[rows] @ short.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        candidates = np.argpartition(-cosines, spare - 1, axis=1)[:, :spare]
        exact = np.einsum("bd,bsd->bs", features[rows], features[candidates]) / (norms[rows, None] * norms[candidates])
        order = np.argsort(-exact, axis=1, kind="stable")[:, :nearest]
        yield rows, np.take_along_axis(candidates, order, 1), np.take_along_axis(exact, order, 1)


def _components(features: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Project rows of length 1 on their first principal components, not centred, `(n, <= COMPONENTS)`."""
    from sklearn.utils.extmath import randomized_svd

    count, width = features.shape
    if width <= COMPONENTS or count <= COMPONENTS:
        return features / norms[:, None]
    sample = np.random.default_rng(0).permutation(count)[:SAMPLE]
    axes = randomized_svd(features[sample] / norms[sample, None], COMPONENTS, random_state=0)[2]
    return (features @ axes.T) / norms[:, None]


def best_correlation(first: np.ndarray, second: np.ndarray, aspect: float = 1.0) -> float:
    """Return the largest correlation, at least 0 and at most 1, of a grey image with the variants of another that is
    `aspect` times as high as wide: shifted, scaled, turned, mirrored. 0 for an image of one colour.

    If both lie on a plain background, such as a cut-out pasted on two colours, the details of the foregrounds may
    correlate instead; this counts nine tenths, for it is said of fewer pixels.
    """
    warps, shown = _warps(min(max(round(2 * np.log2(aspect)), -MOST_HALVES), MOST_HALVES))
    images = [image.astype(np.float32) / 255 - 0.5 for image in (first, second)]
    whole = _correlation(images[0].ravel(), (warps @ images[1].ravel()).reshape(shown.shape), shown)
    masks = [_foreground(image) for image in (first, second)]
    if any(mask is None for mask in masks):
        return whole
    target, other = (
        _details(image, mask).ravel() for image, mask in zip(images, masks, strict=True) if mask is not None
    )
    own, others = (mask.ravel().astype(np.float32) for mask in masks if mask is not None)
    warped = (warps @ others).reshape(shown.shape)
    both = shown * own * (warped > 0.99)
    either = (shown * np.maximum(own, warped > 0.5)).sum(1)
    usable = (both.sum(1) >= LEAST_FOREGROUND * SIDE**2) & (both.sum(1) > LEAST_OVERLAP * either)
    return max(whole, 0.9 * _correlation(target, (warps @ other).reshape(shown.shape)[usable], both[usable]))


def _correlation(target: np.ndarray, variants: np.ndarray, weights: np.ndarray) -> float:
    """Return the largest correlation of an image `(SIDE²,)` with variants `(v, SIDE²)`, where weights of 0 or 1 say."""
    number, total, square = (weights @ np.stack([np.ones_like(target), target, target**2], axis=1)).T
    weighted = weights * variants
    totals, squares = weighted.sum(1), (weighted * variants).sum(1)
    covariance = weighted @ target - total * totals / number
    spread = (square - total**2 / number) * (squares - totals**2 / number)
    valid = spread > (FLAT * number) ** 2
    return float(np.max(covariance[valid] / np.sqrt(spread[valid]), initial=0.0))


def _foreground(grey: np.ndarray) -> np.ndarray | None:
    """Return which pixels of a grey image do not belong to its plain background, less a seam; None if it has none."""
    from scipy import ndimage

    edge = np.ones_like(grey, bool)
    edge[1:-1, 1:-1] = False
    plain = np.abs(grey - np.median(grey[edge])) < PLAIN
    if plain[edge].mean() < 0.5:
        return None
    regions, _ = ndimage.label(plain)
    return ndimage.binary_erosion(~np.isin(regions, np.unique(regions[edge & plain])), border_value=1)


def _details(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Subtract from each pixel the mean of its surroundings within a mask: shading says little, writing much."""
    from scipy.ndimage import gaussian_filter

    weights = mask.astype(np.float32)
    return image - gaussian_filter(image * weights, 2) / np.maximum(gaussian_filter(weights, 2), 1e-3)


@cache
def _warps(half_octaves: int) -> tuple[csr_matrix, np.ndarray]:
    """Return the matrix that makes all variants of a squashed image of the aspect 2^(n/2), bilinear
    `(270 * SIDE², SIDE²)`, zero where they show nothing, and where they show something, float32 `(270, SIDE²)`."""
    from scipy.sparse import csr_matrix

    middle, aspect = (SIDE - 1) / 2, 2 ** (half_octaves / 2)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE) - middle] * 2, indexing="ij")).reshape(2, -1)
    rows, columns, weights, shown = [], [], [], []
    for number, (mirror, scale, turn, down, right) in enumerate(product((1, -1), SCALES, TURNS, SHIFTS, SHIFTS)):
        cos, sin = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
        turned = np.array([[cos, -sin / aspect], [sin * aspect, cos]])  # a turn of the image before it was squashed
        source = turned @ (grid * [[1], [mirror]]) + [[down], [right]]
        inside = (np.abs([*grid, *source]) <= middle - MARGIN).all(axis=0)
        shown.append(inside)
        target, (y, x) = np.flatnonzero(inside), source[:, inside] + middle
        top, left = y.astype(int), x.astype(int)
        for below, beside in product((0, 1), (0, 1)):
            rows.append(number * SIDE**2 + target)
            columns.append((top + below) * SIDE + left + beside)
            weights.append(np.abs(1 - below - (y - top)) * np.abs(1 - beside - (x - left)))
    entries = (np.concatenate(weights).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(entries, (len(shown) * SIDE**2, SIDE**2)), np.array(shown, np.float32)
