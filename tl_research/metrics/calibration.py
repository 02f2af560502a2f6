"""Measure and correct how sure a classifier is; make sets of classes that hold the true one with a given frequency."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl_research.metrics.probabilities import softmax

BINS = 10


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the number that logits `(n, k)` are divided by for the least log loss (Guo et al. 2017, arXiv 1706.04599).

    Its logarithm has a standard normal prior, which weighs as much as one image: a few images that are all answered
    correctly would otherwise ask for a temperature of 0.
    """
    from scipy.optimize import minimize_scalar

    own = np.arange(len(labels)), labels

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))[own]
        return float(-np.log(np.maximum(probabilities, 1e-300)).sum() + log_temperature**2 / 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Compare confidence and accuracy in bins of equal width of the probability `(n, k)` of the predicted class; empty
    bins are left out."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "num": int(np.sum(bins == number)),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(correct[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def calibration_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute `loss` (nats), `ece` (expected calibration error, 0 to 1: the mean distance between confidence and
    accuracy over the bins of `reliability`) and `brier` (0 to 2) of probabilities `(n, k)`."""
    errors = probabilities - np.eye(probabilities.shape[1])[labels]
    bins = reliability(probabilities, labels)
    gaps = [entry["num"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins]
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(float).tiny)
    return {
        "loss": float(-np.log(likelihood).mean()),
        "ece": float(sum(gaps) / len(labels)),
        "brier": float((errors**2).sum(axis=1).mean()),
    }


def conformal_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score how strange each true class is: 1 - its probability (Sadinle et al. 2019, arXiv 1609.00451), `(n,)`."""
    return 1 - probabilities[np.arange(len(labels)), labels]


def conformal_threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the largest score at which a class belongs to the prediction set: over draws of `n` exchangeable scores
    the sets hold the true class with a frequency of at least `coverage` (Vovk et al. 2005). Infinite where `n` is too
    small to promise it: then every class belongs to the set."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else np.inf


def prediction_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return which classes belong to each image's set, bool `(n, k)`; the most probable class always does."""
    sets = 1 - probabilities <= threshold
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets
