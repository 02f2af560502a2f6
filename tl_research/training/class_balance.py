"""Count classes of different sizes in the loss: by weights, or by logits adjusted to the classes' frequencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_research.errors import InputError


@dataclass(frozen=True)
class ClassBalance:
    """The weight of each class in the loss `(k,)`, on average 1 over the images, and what the loss adds to its logit
    `(k,)`; None where there is nothing to do."""

    weights: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def of_images(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the weight of each image `(n,)`."""
        return None if self.weights is None else self.weights[labels]


UNIFORM = ClassBalance()


def class_balance(
    weights: Literal["balanced"] | Mapping[str, float] | None,
    adjustment: float,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> ClassBalance:
    """Make weights and offsets from the training `labels` `(n,)`.

    `balanced` weights are inverse to the number of images of a class; of given ones only the ratios count, and a class
    without one has 1. Logit adjustment (Menon et al. 2021, arXiv 2007.07314) adds `adjustment` times the logarithm of
    a class's share of the images to its logit, in the loss alone.

    Raises:
        InputError: weights for classes that there are not.
    """
    counts = np.bincount(labels, minlength=len(class_names)).astype(float)
    seen = np.maximum(counts, 1)  # a class without training images weighs nothing
    offsets = adjustment * np.log(seen / len(labels)) if adjustment else None
    if weights is None:
        return ClassBalance(None, offsets)
    if unknown := set() if weights == "balanced" else {*weights} - {*class_names}:
        raise InputError(
            f"trainer.class_weights: there is no class {', '.join(sorted(unknown))}; the classes are "
            f"{', '.join(class_names)}"
        )
    each = 1 / seen if isinstance(weights, str) else np.array([weights.get(name, 1.0) for name in class_names])
    return ClassBalance(each * len(labels) / (each @ counts), offsets)
