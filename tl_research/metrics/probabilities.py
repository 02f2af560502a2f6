"""Convert logits to probabilities."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Convert logits `(n, k)` to probabilities `(n, k)`, in float64."""
    from scipy.special import softmax as scipy_softmax

    return scipy_softmax(np.asarray(logits, np.float64), axis=1)
