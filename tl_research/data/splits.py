"""Which image trains, which chooses, which judges: seeded and stratified."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tl_research.errors import InputError


def groups_of(paths: Sequence[Path], root: Path, pattern: str) -> np.ndarray:
    """Which group each file belongs to, `(n,)`, as text: what `pattern` finds first in its path below `root`, or the
    first bracket of it. Images of one patient or one series look alike: on both sides of a split they make it look
    easier than it is.

    Raises:
        InputError: a path in which nothing is found.
    """
    found = []
    for path in paths:
        match = re.search(pattern, path.relative_to(root).as_posix())
        if match is None or not match.group(1 if match.re.groups else 0):
            raise InputError(f"data.group_by={pattern}: it finds nothing in {path.relative_to(root)}")
        found.append(match.group(1 if match.re.groups else 0))
    return np.array(found)


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


def held_fold(
    labels: np.ndarray, fold: int, folds: int, seed: int, *, names: Sequence[str], groups: np.ndarray | None = None
) -> np.ndarray:
    """Indices (sorted) of one of `folds` stratified parts; over all folds each example is held out once. `groups`
    `(n,)` stay whole.

    Raises:
        InputError: a class has fewer images, or groups, than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    if groups is not None:
        return grouped_parts(labels, groups, folds, seed, names=names, key=f"data.folds={folds}")[fold]
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < folds:
        few = int(counts.argmin())
        raise InputError(
            f"data.folds={folds}: class '{names[few]}' has {counts[few]} image(s) to split; give as many folds at "
            f"most, or add images of it"
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    return next(held for number, (_, held) in enumerate(parts) if number == fold)


def hold_out_groups(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int, *, names: Sequence[str], key: str
) -> np.ndarray:
    """Indices (sorted) of whole groups that make up about `share` of the examples, of each class.

    Raises:
        InputError: a class has too few groups.
    """
    folds = max(round(1 / min(share, 1 - share)), 2)
    parts = grouped_parts(labels, groups, folds, seed, names=names, key=f"{key}={share:g}")
    return parts[0] if share <= 0.5 else np.sort(np.concatenate(parts[1:]))


def grouped_parts(
    labels: np.ndarray, groups: np.ndarray, parts: int, seed: int, *, names: Sequence[str], key: str
) -> list[np.ndarray]:
    """Indices (sorted) of `parts` parts of whole groups, each with about its share of every class: scikit-learn's
    `StratifiedGroupKFold`.

    Raises:
        InputError: a class has fewer groups than parts, or none of its groups fell into a part.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for label, name in enumerate(names):
        found = len(np.unique(groups[labels == label]))
        if found < parts:
            raise InputError(
                f"{key}: it takes {parts} groups (data.group_by) of class '{name}', and there are {found}; ask for "
                f"fewer parts, or add images of other groups"
            )
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    found_parts = [held for _, held in splitter.split(labels, labels, groups)]
    for held in found_parts:
        missing = set(range(len(names))) - set(labels[held].tolist())
        if missing:
            raise InputError(
                f"{key}: groups (data.group_by) are so uneven that one part has no image of class "
                f"'{names[min(missing)]}'; ask for fewer parts, or another data.split_seed"
            )
    return found_parts


def demand_apart(split_of: np.ndarray, groups: np.ndarray) -> None:
    """Raises `InputError` if a group lies on both sides of a split that the folder brought."""
    for left, right in (("train", "test"), ("val", "test"), ("train", "val")):
        both = np.intersect1d(groups[split_of == left], groups[split_of == right])
        if len(both):
            raise InputError(
                f"data.group_by: {len(both)} group(s) lie both in {left}/ and in {right}/, such as '{both[0]}'; a "
                f"result would look better than it is. Move their images to one side, or give one folder without splits"
            )


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
