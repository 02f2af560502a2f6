"""Which image trains, which chooses, which judges: seeded and stratified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl_research.errors import InputError


def hold_out(labels: np.ndarray, share: float, seed: int, *, names: Sequence[str], key: str) -> np.ndarray:
    """Indices (sorted) of a stratified `share` of the examples: of each class its share, rounded, but at least one
    image and not all of them. scikit-learn's stratified splitters give a small class none, so the quota is ours.

    Args:
        labels: class index per example, `(n,)`.
        share: between 0 and 1, exclusive.
        names: the classes' names, for the error.
        key: the config key that asked for it, for the error.

    Raises:
        InputError: a class is too small to give one image and keep one.
    """
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for index, name in enumerate(names):
        members = np.flatnonzero(labels == index)
        if len(members) < 2:
            raise InputError(
                f"{key}={share:g}: class '{name}' has {len(members)} image(s) to split and needs 2, one to hold out "
                f"and one to keep; add images of it, or leave the class out"
            )
        quota = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(rng.permutation(members)[:quota])
    return np.sort(np.concatenate(held))
