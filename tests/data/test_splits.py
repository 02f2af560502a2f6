"""Test that splits take each class's share and depend on the seed only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold, StratifiedKFold

from tl_research.data.splits import (
    demand_apart,
    grouped_parts,
    groups_of,
    held_fold,
    hold_out,
    hold_out_groups,
    subset,
)
from tl_research.errors import InputError

few = settings(deadline=None, max_examples=100)
counts_per_class = st.lists(st.integers(2, 40), min_size=1, max_size=6)
shares = st.floats(0.001, 0.999)
seeds = st.integers(0, 2**32 - 1)


def labels_of(counts: list[int], mix: int = 0) -> np.ndarray:
    return np.random.default_rng(mix).permutation(np.repeat(np.arange(len(counts)), counts))


def held(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    return hold_out(labels, share, seed, num_classes=labels.max() + 1)


@few
@given(counts=counts_per_class, share=shares, seed=seeds, mix=st.integers(0, 9))
def test_each_class_is_split_by_its_share(counts: list[int], share: float, seed: int, mix: int) -> None:
    labels = labels_of(counts, mix)
    indices = held(labels, share, seed)
    assert np.array_equal(indices, np.unique(indices)), "sorted, each once"
    kept = np.setdiff1d(np.arange(len(labels)), indices)
    for label, count in enumerate(counts):
        gives, keeps = np.sum(labels[indices] == label), np.sum(labels[kept] == label)
        assert gives + keeps == count
        assert gives >= 1
        assert keeps >= 1
        if 0.5 <= share * count <= count - 0.5:
            assert abs(gives - share * count) <= 0.5


@few
@given(extra=st.integers(1, 9), share=shares, seed=seeds, keep=st.integers(1, 5))
def test_enough_images_are_left_for_the_next_split(extra: int, share: float, seed: int, keep: int) -> None:
    labels = labels_of([keep + extra, 30])
    indices = hold_out(labels, share, seed, num_classes=2, keep=keep)
    assert 1 <= np.sum(labels[indices] == 0) <= extra


@few
@given(counts=counts_per_class, share=shares, seed=seeds)
def test_a_split_depends_on_the_seed_only(counts: list[int], share: float, seed: int) -> None:
    labels = labels_of(counts)
    before = labels.copy()
    first = held(labels, share, seed)
    np.random.default_rng().random()
    assert np.array_equal(first, held(labels, share, seed))
    assert np.array_equal(labels, before)


def test_seeds_hold_out_different_examples() -> None:
    labels = labels_of([30, 30])
    chosen = {tuple(held(labels, 0.3, seed)) for seed in range(20)}
    assert len(chosen) == 20
    assert set().union(*chosen) == set(range(60)), "every example can be held out"


@few
@given(count=st.integers(4, 40), share=shares, seed=seeds)
def test_a_small_class_has_one_image_held_out(count: int, share: float, seed: int) -> None:
    labels = labels_of([2, count])
    assert np.sum(labels[held(labels, share, seed)] == 0) == 1


@pytest.mark.parametrize(("count", "keep"), [(0, 1), (1, 1), (2, 2)])
def test_a_class_too_small_to_split_stays_whole(count: int, keep: int) -> None:
    labels = np.array([0] * 5 + [1] * count)
    assert labels[hold_out(labels, 0.25, 0, num_classes=2, keep=keep)].tolist() == [0]


# Folds and parts


@few
@given(counts=st.lists(st.integers(5, 30), min_size=2, max_size=5), folds=st.integers(2, 5), seed=seeds)
def test_each_example_is_held_out_once_over_all_folds(counts: list[int], folds: int, seed: int) -> None:
    labels, names = labels_of(counts), [str(i) for i in range(len(counts))]
    parts = [held_fold(labels, fold, folds, seed, names=names) for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for label, count in enumerate(counts):
        shares = [int(np.sum(labels[part] == label)) for part in parts]
        assert max(shares) - min(shares) <= 1, count


def test_a_class_with_fewer_images_than_folds_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.folds=5: class 'b' has 4 image"):
        held_fold(labels_of([9, 4]), 0, 5, 0, names=["a", "b"])


@few
@given(counts=counts_per_class, small=st.floats(0.01, 1), large=st.floats(0.01, 1), seed=seeds)
def test_a_smaller_part_is_a_subset_of_a_larger_one(counts: list[int], small: float, large: float, seed: int) -> None:
    labels, names = labels_of(counts), [str(i) for i in range(len(counts))]
    small, large = sorted((small, large))
    parts = [subset(labels, fraction, None, seed, names=names) for fraction in (small, large)]
    assert set(parts[0]) <= set(parts[1])
    for fraction, part in zip((small, large), parts, strict=True):
        found = np.bincount(labels[part], minlength=len(counts))
        assert found.tolist() == [max(round(fraction * count), 1) for count in counts]
    assert np.array_equal(subset(labels, 1.0, None, seed, names=names), np.arange(len(labels)))
    few_each = subset(labels, 1.0, 2, seed, names=names)
    assert np.bincount(labels[few_each]).tolist() == [2] * len(counts)


def test_a_class_with_too_few_for_per_class_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.per_class=5: class 'b' has 4 image"):
        subset(labels_of([9, 4]), 1.0, 5, 0, names=["a", "b"])


@given(st.integers(0, 2**16), st.sampled_from([0.1, 0.2, 0.33, 0.5, 0.7]), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_a_group_is_never_divided(seed: int, share: float, folds: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.array([f"p{number}" for number in rng.integers(0, 40, 300)])
    labels = np.array([hash_of(group, 2) for group in groups])
    for held in (
        hold_out_groups(labels, groups, share, seed, names=("a", "b"), key="data.test"),
        *grouped_parts(labels, groups, folds, seed, names=("a", "b"), key="data.folds"),
    ):
        rest = np.setdiff1d(np.arange(len(labels)), held)
        assert not set(groups[held]) & set(groups[rest])
        assert set(labels[held]) == {0, 1}
    held = hold_out_groups(labels, groups, share, seed, names=("a", "b"), key="data.test")
    assert abs(len(held) / len(labels) - share) < 0.2


def hash_of(group: str, count: int) -> int:
    return int(group[1:]) % count


def test_over_all_folds_each_group_is_held_out_once() -> None:
    groups = np.repeat([f"p{number}" for number in range(12)], 3)
    labels = np.repeat(np.arange(12) % 2, 3)
    held = [held_fold(labels, fold, 3, 0, names=("a", "b"), groups=groups) for fold in range(3)]
    assert sorted(np.concatenate(held).tolist()) == list(range(36))


def test_groups_are_matched_in_the_path() -> None:
    root = Path("/photos")
    paths = [root / "cat" / "p1_a.jpg", root / "dog" / "p1_b.jpg", root / "dog" / "p22_b.jpg"]
    assert groups_of(paths, root, r"p(\d+)_").tolist() == ["1", "1", "22"]
    assert groups_of(paths, root, r"p\d+").tolist() == ["p1", "p1", "p22"]
    with pytest.raises(InputError, match=r"data\.group_by=x: it finds nothing in cat/p1_a\.jpg"):
        groups_of(paths, root, "x")


def test_too_few_groups_and_divided_groups_are_refused() -> None:
    labels, groups = np.array([0, 0, 1, 1]), np.array(["q", "r", "p", "p"])
    with pytest.raises(InputError, match=r"data\.test=0\.2: it takes 2 groups .* of class 'b', and there are 1; add"):
        hold_out_groups(labels, groups, 0.2, 0, names=("a", "b"), key="data.test")
    with pytest.raises(InputError, match=r"1 group\(s\) lie both in train/ and in test/, such as 'p'"):
        demand_apart(np.array(["train", "test", "train", "test"]), groups)


def test_three_groups_of_a_class_suffice() -> None:
    labels, groups = np.repeat([0, 1], 12), np.repeat(list("abcdef"), 4)
    held = hold_out_groups(labels, groups, 0.2, 0, names=["x", "y"], key="data.test")
    assert len(held) == 8
    assert np.bincount(labels[held]).tolist() == [4, 4]


@pytest.mark.parametrize("groups", [None, np.arange(24) // 2], ids=["images", "groups"])
def test_each_repeat_divides_anew_as_scikit_learn_does(groups: np.ndarray | None) -> None:
    labels = np.repeat([0, 1], 12)
    held = [
        [held_fold(labels, fold, 3, 7, names=["a", "b"], groups=groups, repeat=repeat).tolist() for fold in range(3)]
        for repeat in range(3)
    ]
    assert all(sorted(np.concatenate(parts).tolist()) == list(range(24)) for parts in held)
    assert len({str(parts) for parts in held}) == 3
    first = (StratifiedKFold if groups is None else StratifiedGroupKFold)(3, shuffle=True, random_state=7)
    assert held[0] == [part.tolist() for _, part in first.split(labels, labels, groups)], "as without repeats"
    if groups is None:
        parts = RepeatedStratifiedKFold(n_splits=3, n_repeats=3, random_state=7).split(labels, labels)
        assert [part for each in held for part in each] == [part.tolist() for _, part in parts]
