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


def held_fold(labels: np.ndarray, fold: int, folds: int, seed: int, *, names: Sequence[str]) -> np.ndarray:
    """Indices (sorted) of one of `folds` stratified parts; over all folds each example is held out once.

    Raises:
        InputError: a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < folds:
        few = int(counts.argmin())
        raise InputError(
            f"data.folds={folds}: class '{names[few]}' has {counts[few]} image(s) to split; give as many folds at "
            f"most, or add images of it"
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    return next(held for number, (_, held) in enumerate(parts) if number == fold)


def subset(
    labels: np.ndarray, fraction: float, per_class: int | None, seed: int, *, names: Sequence[str]
) -> np.ndarray:
    """Indices (sorted) of a part of the examples: of each class `per_class`, or else its `fraction`, rounded, at least
    one. By one seed a smaller part lies within a larger one, so that a learning curve adds images and swaps none.

    Raises:
        InputError: a class has fewer than `per_class` images.
    """
    kept = []
    for index, name in enumerate(names):
        members = np.flatnonzero(labels == index)
        if per_class is not None and len(members) < per_class:
            raise InputError(f"data.per_class={per_class}: class '{name}' has {len(members)} image(s) to train on")
        quota = per_class or max(round(fraction * len(members)), 1)
        kept.append(np.random.default_rng((seed, index)).permutation(members)[:quota])
    return np.sort(np.concatenate(kept))
