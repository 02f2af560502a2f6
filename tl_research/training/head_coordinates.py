"""Express features in the coordinates in which heads are solved: centred, scaled, and few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def coordinates_of(features: np.ndarray) -> np.ndarray:
    """Centre and scale features `(n, d)` as `solve` does, in coordinates of the space they span, `(n, min(n, d))`."""
    return span(_scaled(features))[0]


def gram_matrix(features: np.ndarray) -> np.ndarray:
    """Return the products of all pairs of rows, `(n, n)`, of features that are centred and divided as `solve` does. For
    networks side by side they add up."""
    scaled = _scaled(features)
    return scaled @ scaled.T


def _scaled(features: np.ndarray) -> np.ndarray:
    return (features - mean_feature(features, None)) / part_scales(features, [features.shape[1]])


def gram_coordinates(gram: np.ndarray) -> np.ndarray:
    """Return coordinates `(n, n)`, float32, of the rows behind a Gram matrix: its Cholesky factor. Penalties are chosen
    by them as by the features, at a tenth of the cost of `span`."""
    ridge = 1e-6 * (np.trace(gram) / len(gram) or 1.0)  # for what is centred has no full rank
    return np.linalg.cholesky(gram + ridge * np.eye(len(gram))).astype(np.float32)


def part_scales(features: np.ndarray, widths: Sequence[int], sample: np.ndarray | None = None) -> np.ndarray:
    """Return the root mean variance of each network's features, once for each feature, `(d,)`; 1 where none varies."""
    if sample is None:
        variance = features.var(axis=0, dtype=np.float64)
    else:
        variance = mean_feature((features - mean_feature(features, sample)) ** 2, sample)
    variances = np.split(variance, np.cumsum(widths)[:-1])
    return np.repeat([float(np.sqrt(part.mean())) or 1.0 for part in variances], widths)


def mean_feature(features: np.ndarray, sample: np.ndarray | None) -> np.ndarray:
    """Average features `(n, d)`, weighted by `sample` `(n,)` if given: `(d,)`."""
    return features.mean(axis=0, dtype=np.float64) if sample is None else np.average(features, axis=0, weights=sample)


def span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Express features in coordinates of the space they span; return these and its orthonormal basis `(d, r)`. The
    optimum lies in it, and with fewer images than dimensions, the usual case, the problem becomes smaller."""
    n, d = features.shape
    if n >= d:
        return features, np.eye(d)
    basis, coordinates = np.linalg.qr(features.T)  # features = coordinates.T @ basis.T
    return np.ascontiguousarray(coordinates.T), basis
