"""Fit `head=prototype` and `head=knn`: class means and neighbours, hyperparameters chosen by leave-one-out log loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tl_research.metrics.calibration import fit_temperature
from tl_research.metrics.probabilities import softmax

# One vote, spread evenly over the classes, is added to the neighbours', so that no probability is 0 or 1.
PSEUDO_VOTE = 1.0

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHARPNESS = np.logspace(-1, 3, 17)

FOLDS = 5
"""Folds in which the scale of whitened prototypes is chosen: an image left out still shaped the whitening."""

# Images whose neighbours decide k and temperature; more change little and the cost is quadratic.
MOST_FOR_CHOOSING = 2000


def unit(features: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float32; rows of zeros stay zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(lengths == 0, 1, lengths)).astype(np.float32)


@dataclass(frozen=True)
class Whitening:
    """An affine map of features `(n, d)`, `kernel` `(d, r)` and `bias` `(r,)`, float32, after which their pooled
    covariance within classes is the identity. The covariance is shrunk towards a multiple of the identity (Ledoit and
    Wolf 2004); of fewer rows than dimensions, only the space that they span is kept."""

    kernel: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> Whitening:
        """Fit on features and labels `(n,)`; where no class has two different rows, nothing is scaled."""
        rows = features.astype(np.float64)
        mean = rows.mean(axis=0)
        basis = _span(rows - mean)
        classes, place = np.unique(labels, return_inverse=True)
        within = (rows - np.stack([rows[labels == label].mean(axis=0) for label in classes])[place]) @ basis
        covariance = within.T @ within / len(rows)
        target = np.trace(covariance) / rows.shape[1]
        # As scikit-learn's `ledoit_wolf_shrinkage(..., assume_centered=True)`, by products in the span.
        distance = (covariance**2).sum() - target * np.trace(covariance)
        noise = (((within**2).sum(axis=1) ** 2).mean() - (covariance**2).sum()) / len(rows)
        shrinkage = min(noise / distance, 1.0) if distance > 0 else 1.0
        values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * target * np.eye(len(covariance)))
        scale = 1 / np.sqrt(np.maximum(values, 1e-9 * values[-1])) if target > 0 else np.ones(len(values))
        kernel = basis @ (vectors * scale)
        return cls(kernel.astype(np.float32), (-mean @ kernel).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Map features `(n, d)` to `(n, r)`."""
        return features @ self.kernel + self.bias


def _span(centred: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis `(d, r)` of the space of rows `(n, d)`: all of it unless they are few."""
    n, d = centred.shape
    if n > d:
        return np.eye(d)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = values > 1e-9 * max(values[-1], 1e-30)
    return (centred.T @ vectors[:, kept]) / np.sqrt(values[kept]) if kept.any() else np.eye(d)[:, :1]


def whitened_prototypes(
    features: np.ndarray, labels: np.ndarray, num_classes: int, views: int, *, normalize: bool
) -> tuple[Whitening, np.ndarray, np.ndarray]:
    """Whiten, and compute kernel and bias of `prototypes` on the result, scaled by the log loss of held-out folds."""
    from sklearn.model_selection import StratifiedKFold

    def fit(rows: np.ndarray) -> tuple[Whitening, np.ndarray, np.ndarray]:
        whitening = Whitening.of(features[rows], labels[rows])
        given = whitening(features[rows]), labels[rows]
        return whitening, *prototypes(*given, num_classes, views, normalize=normalize)

    whitening, kernel, bias = fit(np.arange(len(labels)))
    folds = min(FOLDS, int(np.bincount(labels[::views]).min()))
    if folds < 2:
        return whitening, kernel, bias
    logits = np.empty((len(labels), num_classes))
    by_image = np.arange(len(labels)).reshape(-1, views)
    for train, held in StratifiedKFold(folds, shuffle=True, random_state=0).split(by_image, labels[::views]):
        own_whitening, own_kernel, own_bias = fit(by_image[train].ravel())
        rows = own_whitening(features[by_image[held].ravel()])
        logits[by_image[held].ravel()] = (unit(rows) if normalize else rows) @ own_kernel + own_bias
    temperature = fit_temperature(logits, labels)
    return whitening, kernel / temperature, bias / temperature


def prototypes(
    features: np.ndarray, labels: np.ndarray, num_classes: int, views: int, *, normalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute kernel `(d, k)` and bias `(k,)` of the dense layer whose logits are `-|x - mean|^2 * s`, up to a term
    that all classes share. `s` minimizes the leave-one-out log loss: each image is compared to means without it."""
    rows = (unit(features) if normalize else features).astype(np.float64)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(num_classes)])
    distances = (
        ((rows[:, None] - means) ** 2).sum(axis=2) if rows.size * num_classes < 1e8 else squared_distances(rows, means)
    )
    own = (np.arange(len(labels)), labels)
    counts = np.bincount(labels, minlength=num_classes)[labels] / views  # images per class
    single = counts <= 1
    if views == 1:  # x - mean without x = (x - mean) * n / (n - 1)
        distances[own] *= np.where(single, 1, (counts / np.maximum(counts - 1, 1)) ** 2)
    else:
        distances[own] = leave_one_out_distances(rows, labels, means, views)
    scale = 1 / max(float(distances.mean()), 1e-12)
    scored = ~single if not single.all() else np.ones(len(labels), bool)
    losses = [_log_loss(-distances[scored] * scale * s, labels[scored]) for s in SHARPNESS]
    s = scale * SHARPNESS[int(np.argmin(losses))]
    centre = means.mean(axis=0)  # subtracting it changes no prediction and avoids float32 cancellation
    kernel, bias = 2 * s * (means - centre).T, -s * ((means**2).sum(axis=1) - (centre**2).sum())
    return kernel.astype(np.float32), bias.astype(np.float32)


def squared_distances(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Compute squared distances `(n, k)` of rows `(n, d)` from means `(k, d)` by matrix multiplication."""
    squares = (rows**2).sum(axis=1)[:, None] - 2 * rows @ means.T + (means**2).sum(axis=1)
    return np.maximum(squares, 0)


def leave_one_out_distances(rows: np.ndarray, labels: np.ndarray, means: np.ndarray, views: int) -> np.ndarray:
    """Compute each row's squared distance to its class mean over the other images."""
    counts = np.bincount(labels, minlength=len(means))[labels][:, None]
    image = rows.reshape(-1, views, rows.shape[1]).sum(axis=1).repeat(views, axis=0)
    others = (means[labels] * counts - image) / np.maximum(counts - views, 1)
    return np.where(counts[:, 0] > views, ((rows - others) ** 2).sum(axis=1), ((rows - means[labels]) ** 2).sum(axis=1))


def choose_k(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    views: int,
    k: int | None,
    temperature: float | None,
) -> tuple[int, float]:
    """Choose `k` (at most the number of rows) and temperature, where not given, by leave-one-out log loss."""
    rows = unit(features)
    most = len(rows)
    if k is not None and temperature is not None:
        return min(k, most), temperature
    scored = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_FOR_CHOOSING])
    cosines = rows[scored] @ rows.T
    cosines[(scored // views)[:, None] == np.arange(len(rows)) // views] = -np.inf  # exclude the image's own views
    others = most - views
    if others < 1:
        return min(k or 1, most), temperature or TEMPERATURES[2]
    nearest = np.argsort(-cosines, axis=1)[:, : max(k or 0, min(max(NEIGHBOURS), others))]
    near = np.take_along_axis(cosines, nearest, axis=1)
    votes = np.eye(num_classes)[labels[nearest]]
    losses = {
        (kk, t): vote_loss(near[:, :kk], votes[:, :kk], t, labels[scored])
        for kk in ([min(k, others)] if k else [n for n in NEIGHBOURS if n <= others])
        for t in ([temperature] if temperature else TEMPERATURES)
    }
    best_k, best_t = min(losses, key=losses.__getitem__)
    return min(k, most) if k else best_k, best_t


def vote_loss(cosines: np.ndarray, votes: np.ndarray, temperature: float, labels: np.ndarray) -> float:
    """Compute the log loss of votes `(n, k, classes)` of neighbours with cosines `(n, k)`."""
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    totals = (weights[:, :, None] * votes).sum(axis=1) + PSEUDO_VOTE / votes.shape[2]
    return _log_loss(np.log(totals), labels)


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.mean(np.log(np.maximum(softmax(logits)[np.arange(len(labels)), labels], 1e-300))))
