"""Split images for training, validation and testing: seeded, stratified, by groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tl_research.data.formats import IMAGE_SUFFIXES
from tl_research.data.path_lists import is_list, listed_groups
from tl_research.errors import InputError


def groups_of(paths: Sequence[Path], root: Path, pattern: str) -> np.ndarray:
    """Return each file's group, `(n,)` as text: the first match of `pattern` in its path below `root`, or that match's
    first capture group; or, if it names a file, what that list says. Images of one patient or series look alike;
    divided between splits they make results look better than they are.

    Raises:
        InputError: `pattern` matches nothing in a path, or the list cannot be used.
    """
    if is_list(pattern):
        return listed_groups(paths, root, Path(pattern).expanduser())
    groups = []
    for path in paths:
        match = re.search(pattern, path.relative_to(root).as_posix())
        if match is None or not match.group(1 if match.re.groups else 0):
            raise InputError(f"data.group_by={pattern}: it finds nothing in {path.relative_to(root)}")
        groups.append(match.group(1 if match.re.groups else 0))
    return np.array(groups)


def first_of_stem(paths: Sequence[Path], labels: np.ndarray) -> np.ndarray:
    """Return for each file the index of the first of its folder, stem and label, `(n,)`: a phone's `IMG_1.JPG` and
    `IMG_1.HEIC` are one photograph, and belong in one split."""
    first: dict[tuple[Path, int], int] = {}
    stems = (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path for path in paths)
    keys = zip(stems, labels.tolist(), strict=True)
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], int)


def hold_out(labels: np.ndarray, share: float, seed: int, *, num_classes: int, keep: int = 1) -> np.ndarray:
    """Return sorted indices of a stratified `share` of the examples, between 0 and 1: per class the rounded share, at
    least one image, leaving at least `keep`, 2 if another split is cut from them; none of a class that has no more.
    scikit-learn's stratified splitters may give a larger class none, too. `labels` `(n,)` are class indices."""
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for index in range(num_classes):
        members = np.flatnonzero(labels == index)
        quota = min(max(round(share * len(members)), 1), max(len(members) - keep, 0))
        chosen.append(rng.permutation(members)[:quota])
    return np.sort(np.concatenate(chosen))


def held_fold(
    labels: np.ndarray,
    fold: int,
    folds: int,
    seed: int,
    *,
    names: Sequence[str],
    groups: np.ndarray | None = None,
    repeat: int = 0,
) -> np.ndarray:
    """Return one of `folds` `stratified_parts`. Raises `InputError`, as these do."""
    few = "to split, equal ones counted once; give as many folds at most, or add images of it"
    key = f"data.folds={folds}"
    return stratified_parts(labels, folds, seed, names=names, key=key, few=few, groups=groups, repeat=repeat)[fold]


def stratified_parts(
    labels: np.ndarray,
    parts: int,
    seed: int,
    *,
    names: Sequence[str],
    key: str,
    few: str,
    groups: np.ndarray | None = None,
    repeat: int = 0,
    remedy: str = "",
) -> list[np.ndarray]:
    """Divide examples into stratified parts: the sorted indices of each. Each `repeat` shuffles anew. `groups` `(n,)`
    are not divided.

    Raises:
        InputError: a class has fewer images, or groups, than parts; of images the line names `key` and ends on `few`,
            of groups on `remedy`, if given.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    if groups is not None:
        return grouped_parts(labels, groups, parts, seed, names=names, key=key, repeat=repeat, remedy=remedy)
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < parts:
        rarest = int(counts.argmin())
        raise InputError(f"{key}: class '{names[rarest]}' has {counts[rarest]} image(s) {few}")
    splitter = RepeatedStratifiedKFold(n_splits=parts, n_repeats=repeat + 1, random_state=seed)
    return [held for _, held in splitter.split(labels, labels)][repeat * parts :]


def hold_out_groups(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int, *, names: Sequence[str], key: str
) -> np.ndarray:
    """Return sorted indices of whole groups, about `share` of each class, more where a class has few groups.

    Raises:
        InputError: a class has one group only.
    """
    folds = max(round(1 / min(share, 1 - share)), 2)
    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    folds = min(folds, max(fewest, 2))
    parts = grouped_parts(labels, groups, folds, seed, names=names, key=f"{key}={share:g}")
    return parts[0] if share <= 0.5 else np.sort(np.concatenate(parts[1:]))


def grouped_parts(
    labels: np.ndarray,
    groups: np.ndarray,
    parts: int,
    seed: int,
    *,
    names: Sequence[str],
    key: str,
    repeat: int = 0,
    remedy: str = "",
) -> list[np.ndarray]:
    """Divide whole groups into `parts` parts, each with about its share of every class, by scikit-learn's
    `StratifiedGroupKFold`; return each part's sorted indices. `repeat` says how often they were shuffled before.

    Raises:
        InputError: a class has fewer groups than parts, or a part has no image of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for label, name in enumerate(names):
        available = len(np.unique(groups[labels == label]))
        if available < parts:
            fewer = "ask for fewer parts, or " * (parts > 2)
            raise InputError(
                f"{key}: it takes {parts} groups (data.group_by, or copies of an image) of class '{name}', and there "
                f"are {available}; {remedy or f'{fewer}add images of other groups'}"
            )
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=np.random.RandomState(seed))
    for _ in range(repeat + 1):  # each goes on drawing where the one before ended, as in RepeatedStratifiedKFold
        held_out = [part for _, part in splitter.split(labels, labels, groups)]
    for part in held_out:
        missing = set(range(len(names))) - set(labels[part].tolist())
        if missing:
            raise InputError(
                f"{key}: groups (data.group_by) are so uneven that one part has no image of class "
                f"'{names[min(missing)]}'; {remedy or 'ask for fewer parts, or another data.split_seed'}"
            )
    return held_out


def demand_apart(split_of: np.ndarray, groups: np.ndarray) -> None:
    """Check that split folders do not divide a group; raise `InputError` otherwise."""
    for left, right in (("train", "test"), ("val", "test"), ("train", "val")):
        both = np.intersect1d(groups[split_of == left], groups[split_of == right])
        if len(both):
            raise InputError(
                f"data.group_by: {len(both)} group(s) lie both in {left}/ and in {right}/, such as '{both[0]}'; a "
                f"result would look better than it is. Move their images to one side, give one folder without "
                f"splits, or accept it with data.allow_leaks=true"
            )


def subset(
    labels: np.ndarray, fraction: float, per_class: int | None, seed: int, *, names: Sequence[str]
) -> np.ndarray:
    """Return sorted indices of a part of the examples: `per_class` of each class, or else the rounded `fraction`, at
    least one. With the same seed a smaller part is a subset of a larger one, so that a learning curve only adds images.

    Raises:
        InputError: a class has fewer than `per_class` images.
    """
    chosen = []
    for index, name in enumerate(names):
        members = np.flatnonzero(labels == index)
        if per_class is not None and len(members) < per_class:
            raise InputError(f"data.per_class={per_class}: class '{name}' has {len(members)} image(s) to train on")
        quota = per_class or max(round(fraction * len(members)), 1)
        chosen.append(np.random.default_rng((seed, index)).permutation(members)[:quota])
    return np.sort(np.concatenate(chosen))
