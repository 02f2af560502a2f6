"""Which image trains, which chooses, which judges: seeded and stratified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl_research.errors import InputError


def hold_out(
    labels: np.ndarray, share: float, seed: int, *, names: Sequence[str], key: str, keep: int = 1
) -> np.ndarray:
    """Indices (sorted) of a stratified `share` of the examples: of each class its share, rounded, but at least one
    image, and `keep` are left. scikit-learn's stratified splitters give a small class none, so the quota is ours.

    Args:
        labels: class index per example, `(n,)`.
        share: between 0 and 1, exclusive.
        names: the classes' names, for the error.
        key: the config key that asked for it, for the error.
        keep: how many images of a class stay at least: 2 where another split is cut from them.

    Raises:
        InputError: a class is too small to give one image and keep as many.
    """
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for index, name in enumerate(names):
        members = np.flatnonzero(labels == index)
        if len(members) <= keep:
            raise InputError(
                f"{key}={share:g}: class '{name}' has {len(members)} image(s) to split and needs {keep + 1}, one to "
                f"hold out and {keep} to keep; add images of it, or leave the class out"
            )
        quota = min(max(round(share * len(members)), 1), len(members) - keep)
        held.append(rng.permutation(members)[:quota])
    return np.sort(np.concatenate(held))
