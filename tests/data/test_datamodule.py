"""Test that unreadable files are set aside, splits cover a tree, and streams are exactly repeatable."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import draw_tree
from tl_research import compose
from tl_research.data import datamodule
from tl_research.data.augment.augment import Augment
from tl_research.data.build_dataset import split_dataset
from tl_research.data.class_folders import read_class_folders
from tl_research.data.datamodule import SPLITS, DataModule
from tl_research.data.loader import AHEAD, Batch, PixelCache, numbered_batches, rows_epoch
from tl_research.data.sources import Folder
from tl_research.errors import InputError

few = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(root: Path, **options: Any) -> DataModule:
    return Folder(root=str(root), **options).load()


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw three classes of 14, 9 and 3 images, without splits."""
    return draw_tree(tmp_path_factory.mktemp("flat"), {"red": 14, "green": 3, "blue": 9})


@pytest.fixture
def own(colours: Path, tmp_path: Path) -> Path:
    """Copy `colours`, to damage it."""
    return shutil.copytree(colours, tmp_path / "own")


# Splits


@few
@given(val=st.floats(0.01, 0.99), test=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_splits_cover_a_flat_tree_and_share_nothing(flat: Path, val: float, test: float, seed: int) -> None:
    data = load(flat, val=val, test=test, split_seed=seed)
    assert len(data) == 26
    assert sorted(set(data.split_of)) == sorted(SPLITS)
    together = np.concatenate([data.indices(split) for split in SPLITS])
    assert np.array_equal(np.sort(together), np.arange(len(data)))
    assert all(count >= 1 for counts in data.counts().values() for count in counts.values())


def test_test_is_a_share_of_all_and_val_of_the_rest(flat: Path) -> None:
    counts = load(flat, val=0.2, test=0.3).counts()
    assert counts["test"] == {"blue": 3, "green": 1, "red": 4}
    assert counts["val"] == {"blue": 1, "green": 1, "red": 2}
    assert counts["train"] == {"blue": 5, "green": 1, "red": 8}


@pytest.mark.parametrize("brought", [("train", "test"), ("train", "val"), ("train", "val", "test")], ids="+".join)
def test_split_folders_are_kept(tmp_path: Path, brought: tuple[str, ...]) -> None:
    draw_tree(tmp_path, {f"{split}/{name}": 6 for split in brought for name in ("red", "blue")})
    data = load(tmp_path, split_seed=3)
    assert sorted(set(data.split_of)) == sorted(SPLITS)
    for path, split in zip(data.paths, data.split_of, strict=True):
        origin = path.relative_to(tmp_path).parts[0]
        assert split == origin or (origin == "train" and split not in brought)
    assert data.counts()["train"]["red"] >= 3


@pytest.mark.parametrize("tree", ["flat", "colours"])
def test_the_same_seed_splits_the_same_and_another_does_not(tree: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(tree)
    chosen = [load(root, split_seed=seed).indices("val").tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_the_folders_location_does_not_matter(flat: Path, tmp_path: Path) -> None:
    here, there = load(flat), load(shutil.copytree(flat, tmp_path / "elsewhere"))
    assert [p.relative_to(flat) for p in here.paths] == [p.relative_to(tmp_path / "elsewhere") for p in there.paths]
    assert np.array_equal(here.split_of, there.split_of)


def test_examples_are_ordered_by_class_and_path_and_labelled(flat: Path) -> None:
    data = load(flat)
    assert list(data.class_names) == ["blue", "green", "red"]
    assert data.paths == sorted(data.paths)
    assert [data.class_names[label] for label in data.labels] == [path.parent.name for path in data.paths]


def test_sizes_are_those_of_the_files(flat: Path) -> None:
    data = load(flat)
    for path, size in zip(data.paths, data.sizes, strict=True):
        with Image.open(path) as image:
            assert image.size == tuple(size)


@pytest.mark.parametrize(
    ("tree", "min_images", "splits"),
    [
        ({"red": 8, "green": 9, "blue": 3}, 3, [1, 1, 1]),
        ({"red": 8, "green": 9, "blue": 2}, 3, None),
        ({"red": 8, "green": 9, "blue": 2}, 1, [1, 1, 0]),
        ({"red": 8, "green": 9, "blue": 1}, 1, [1, 0, 0]),
        ({"train/red": 5, "train/green": 5, "train/blue": 1, "test/red": 2, "test/blue": 2}, 3, [1, 0, 2]),
        ({"train/red": 5, "train/green": 5, "train/blue": 2, "val/red": 2, "val/blue": 2}, 3, [1, 2, 1]),
        ({"train/red": 5, "train/green": 5, "train/blue": 2, "test/red": 2}, 3, None),
    ],
)
def test_small_classes_are_left_out_by_name(
    tmp_path: Path, tree: dict[str, int], min_images: int, splits: list[int] | None
) -> None:
    data = load(draw_tree(tmp_path, tree), min_images=min_images)
    if splits is None:
        assert data.class_names == ["green", "red"]
        assert {str(path.parent.name) for path in data.paths} == {"green", "red"}
        (warning,) = data.warnings
        assert "'blue' (2): left out" in warning
        return
    assert [split["blue"] for split in data.counts().values()] == splits
    assert not data.warnings


def test_one_class_of_enough_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fewer than two classes .*'blue' \(2\)"):
        load(draw_tree(tmp_path, {"red": 8, "blue": 2}))


@pytest.mark.parametrize(("val", "test"), [(0.2, 0), (0, 0.2), (0, 0)])
def test_a_share_of_0_cuts_nothing(flat: Path, val: float, test: float) -> None:
    counts = {split: sum(classes.values()) for split, classes in load(flat, val=val, test=test).counts().items()}
    assert [counts["val"] > 0, counts["test"] > 0] == [val > 0, test > 0]


# Bad files


def spoil(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_text("no image")


def test_bad_files_are_set_aside_with_their_reasons(own: Path) -> None:
    spoil(own, "train/red/000.jpg", "test/blue/001.jpg")
    whole = (own / "train/blue/003.jpg").read_bytes()
    (own / "train/blue/003.jpg").write_bytes(whole[: len(whole) // 2])
    (own / "train/blue/004.jpg").write_bytes(b"")
    data = load(own, max_bad=0.2)
    assert {str(bad.path.relative_to(own)): (bad.reason or "").split(" (")[0] for bad in data.quarantined} == {
        "test/blue/001.jpg": "not an image that can be read",
        "train/blue/003.jpg": "truncated",
        "train/blue/004.jpg": "empty file",
        "train/red/000.jpg": "not an image that can be read",
    }
    assert len(data) == len(data.labels) == len(data.split_of) == len(data.sizes) == 36 - 4
    assert not {bad.path for bad in data.quarantined} & set(data.paths)
    assert [path.parent.name for path in data.paths] == [data.class_names[label] for label in data.labels]


@pytest.mark.parametrize(
    ("bad", "max_bad", "works"), [(0, 0.0, True), (1, 0.0, False), (1, 0.05, True), (7, 0.05, False), (9, 0.25, True)]
)
def test_more_unreadable_files_than_max_bad_are_refused(own: Path, bad: int, max_bad: float, works: bool) -> None:
    spoil(own, *(f"train/red/{index:03d}.jpg" for index in range(bad)))
    if works:
        assert len(load(own, max_bad=max_bad).quarantined) == bad
        return
    with pytest.raises(InputError) as caught:
        load(own, max_bad=max_bad)
    message = str(caught.value)
    assert f"{bad} of 36 images cannot be read, more than data.max_bad={max_bad:g} allows" in message
    assert message.count("(not an image") == min(bad, 5)
    assert ("and 2 more. Mend them" in message) == (bad > 5)


def test_a_list_of_findings_that_is_not_there_is_refused(own: Path) -> None:
    with pytest.raises(InputError, match=r"data\.ignore=.*nope\.csv: there is no such file"):
        Folder(root=str(own), ignore=str(own / "nope.csv")).load()


def test_a_class_without_readable_images_to_train_on_is_left_out(own: Path) -> None:
    for path in (own / "train/red").iterdir():
        path.rename(own / "train" / "blue" / f"red{path.name}")
    draw_tree(own, {"train/green": 5, "train/red": 2})
    spoil(own, "train/red/000.jpg", "train/red/001.jpg")
    data = load(own, max_bad=0.9)
    assert data.class_names == ["blue", "green"]
    assert "'red' (6): left out" in data.warnings[0]


def test_ignored_files_are_listed(own: Path) -> None:
    (own / "train/red/notes.txt").write_text("no image")
    assert [path.name for path in load(own).ignored] == ["notes.txt"]


# Streams


@pytest.fixture(scope="module")
def data(colours: Path) -> DataModule:
    return split_dataset(read_class_folders(colours), val=0.2, test=0.2, split_seed=0, max_bad=0.0)


def drawn(stream: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Join all batches."""
    pixels, targets = zip(*stream, strict=True)
    return np.concatenate(pixels), np.concatenate(targets)


def test_pixels_are_the_networks_input_and_targets_one_hot(data: DataModule) -> None:
    ((pixels, targets),) = data.epoch(np.array([0, 20, 1, 2, 9]), 48, 5)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (5, 48, 48, 3)
    assert pixels.max() > 200, "0 to 255, not 0 to 1"
    assert np.array_equal(pixels[3], data.pixels(2, 48))
    assert targets.dtype == np.float32
    assert targets.tolist() == [[float(data.labels[i] == k) for k in (0, 1)] for i in (0, 20, 1, 2, 9)]


@pytest.mark.parametrize("seed", [None, 5])
def test_an_epoch_has_each_example_once_with_its_label(data: DataModule, seed: int | None) -> None:
    chosen = data.indices("train", "val")
    table = {data.pixels(int(i), 32).tobytes(): int(data.labels[i]) for i in chosen}
    assert len(table) == len(chosen)
    batches = list(data.epoch(chosen, 32, 7, seed=seed))
    assert [len(targets) for _, targets in batches] == [7] * (len(chosen) // 7) + [len(chosen) % 7]
    pixels, targets = drawn(batches)
    assert len(pixels) == len(table)
    assert {image.tobytes(): int(k) for image, k in zip(pixels, targets.argmax(1), strict=True)} == table


def order(seed: int | None, epoch: int, count: int = 23, batch: int = 5) -> list[int]:
    numbered = numbered_batches(np.arange(100, 100 + count), batch, epoch=epoch, seed=seed)
    assert [number for number, _ in numbered] == list(range(-(-count // batch)))
    return [int(i) for _, indices in numbered for i in indices]


def test_an_epochs_order_depends_on_seed_and_epoch_only() -> None:
    np.random.default_rng(3).random()
    orders = {(seed, epoch): order(seed, epoch) for seed in (7, 8) for epoch in range(4)}
    assert all(order(*at) == found for at, found in reversed(orders.items()))
    assert all(sorted(found) == list(range(100, 123)) for found in orders.values())
    assert len({tuple(found) for found in orders.values()}) == 8, "no two epochs, no two seeds alike"


counts = st.integers(0, 40)


@given(count=counts, batch=st.integers(1, 50), skip=counts, epoch=counts, seed=st.none() | st.integers(0, 2**32 - 1))
def test_an_epoch_may_begin_at_any_batch(count: int, batch: int, skip: int, epoch: int, seed: int | None) -> None:
    features = np.arange(3 * count, dtype=np.float64).reshape(count, 3)
    labels = np.arange(count) % 5
    whole, rest = (list(rows_epoch(features, labels, 5, batch, epoch=epoch, skip=k, seed=seed)) for k in (0, skip))
    assert len(rest) == max(len(whole) - skip, 0)
    for expected, found in zip(whole[skip:], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert order(seed, epoch, count, batch) == order(seed, epoch, count, 7), "and its order is not the batch size's"


def test_a_slow_image_does_not_change_the_order(data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    read = datamodule.read_bytes

    def slow(path: Path) -> bytes:
        time.sleep(0.05 if data.paths.index(path) % 6 == 0 else 0)
        return read(path)

    monkeypatch.setattr(datamodule, "read_bytes", slow)
    chosen = np.arange(len(data))
    images, _ = drawn(dataclasses.replace(data).epoch(chosen, 16, 1, threads=3))
    assert np.array_equal(images, [data.pixels(int(i), 16) for i in chosen])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is read."""
    count: Counter[str] = Counter()
    read = datamodule.read_bytes
    monkeypatch.setattr(datamodule, "read_bytes", lambda path: (count.update([str(path)]), read(path))[1])
    return count


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.002)


def test_only_a_few_batches_are_loaded_ahead(data: DataModule, decoded: Counter[str]) -> None:
    own = dataclasses.replace(data, augment=Augment(flip=True))  # so that nothing is cached
    many = np.tile(np.arange(len(data)), 20)
    with own.epoch(many, 16, 4, seed=1) as stream:
        wait_for(
            lambda: sum(decoded.values()) == 4 * AHEAD
        )  # before the first batch is requested, so that an epoch starts early
        next(stream)
        wait_for(lambda: sum(decoded.values()) == 4 * (AHEAD + 1))
        time.sleep(0.02)
        assert sum(decoded.values()) == 4 * (AHEAD + 1)


def loaders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("load")}


def test_an_epoch_can_be_abandoned_at_any_time(data: DataModule, decoded: Counter[str]) -> None:
    before = loaders()
    stream = dataclasses.replace(data).epoch(np.tile(np.arange(len(data)), 20), 16, 4)
    next(stream)
    stream.close()
    stream.close()
    read = sum(decoded.values())
    assert loaders() <= before
    assert list(stream) == []
    assert sum(decoded.values()) == read
    assert len(list(data.epoch(np.arange(6), 16, 4))) == 2
    assert loaders() <= before, "nor does one that is read to its end leave threads behind"


def test_two_epochs_read_alternately_are_independent(data: DataModule) -> None:
    alone = [list(data.epoch(np.arange(12), 16, 2, seed=1, epoch=epoch)) for epoch in (0, 1)]
    turns = zip(*(data.epoch(np.arange(12), 16, 2, seed=1, epoch=epoch) for epoch in (0, 1)), strict=True)
    for number, pair in enumerate(turns):
        for epoch in (0, 1):
            assert np.array_equal(pair[epoch][0], alone[epoch][number][0])


def test_a_deleted_image_is_named_in_place_of_its_batch(own: Path) -> None:
    data, before = load(own), loaders()
    data.paths[9].unlink()
    stream = data.epoch(np.arange(12), 16, 4)
    assert [len(next(stream)[1]) for _ in range(2)] == [4, 4]
    with pytest.raises(InputError) as caught:
        next(stream)
    assert str(caught.value) == f"{data.paths[9]}: no such file; it was readable when the run began"
    assert loaders() <= before
    assert list(stream) == []


def test_unchanged_images_are_decoded_once_if_there_is_room(data: DataModule, decoded: Counter[str]) -> None:
    own = dataclasses.replace(data)
    chosen = np.arange(10)
    first = drawn(own.epoch(chosen, 16, 4))[0]
    shuffled = drawn(own.epoch(chosen, 16, 4, seed=1))[0]
    assert max(decoded.values()) == 1
    assert len(decoded) == 10
    assert sorted(image.tobytes() for image in shuffled) == sorted(image.tobytes() for image in first)
    assert drawn(own.epoch(chosen, 8, 4))[0].shape == (10, 8, 8, 3), "another size is another image"


def test_kept_pixels_are_bounded_and_what_was_there_first_stays() -> None:
    asked: list[int] = []
    kept = PixelCache(max_bytes=3 * 12)

    def load(index: int, size: int) -> np.ndarray:
        asked.append(index)
        return np.full((size, size, 3), index, np.uint8)

    for _ in range(2):
        assert [int(kept.get(index, 2, load).max()) for index in range(5)] == list(range(5))
    assert asked == [0, 1, 2, 3, 4, 3, 4]
    assert kept.room == 0


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_resize_is_handed_on(tmp_path: Path, resize: str) -> None:
    draw_tree(tmp_path, {"red": 3, "blue": 3})
    Image.new("RGB", (60, 20), "black").save(tmp_path / "blue" / "wide.png")
    data = load(tmp_path, resize=resize)
    wide = data.pixels([path.name for path in data.paths].index("wide.png"), 30)
    assert (wide[0] == 255).all() == (resize == "pad")


def test_rows_are_batches_of_arrays() -> None:
    features, labels = np.arange(44, dtype=np.float64).reshape(11, 2, 2), np.arange(11)
    batches = list(rows_epoch(features, labels, 12, 4))
    assert [len(targets) for _, targets in batches] == [4, 4, 3]
    found, targets = drawn(batches)
    assert (found.dtype, targets.dtype) == (np.float32, np.float32)
    assert np.array_equal(found, features)
    assert np.array_equal(targets, np.eye(11, 12))


def test_shuffled_rows_keep_their_labels_and_their_order_by_seed() -> None:
    features, labels = np.arange(11, dtype=np.float32)[:, None] * 10, np.arange(11)
    for epoch in (0, 1):
        rows, targets = drawn(rows_epoch(features, labels, 11, 4, epoch=epoch, seed=1))
        assert targets.argmax(1).tolist() == [i - 100 for i in order(1, epoch, count=11, batch=4)]
        assert rows[:, 0].tolist() == (10 * targets.argmax(1)).tolist()


# Cross-validation and learning curves


def test_folds_share_out_what_is_not_tested(colours: Path) -> None:
    options = ["data=folder", f"data.root={colours}", "data.folds=4"]
    folds = [compose([*options, f"data.fold={fold}"]).data.load() for fold in range(4)]
    held = [path for data in folds for path in np.array(data.paths)[data.indices("val")]]
    assert sorted(held) == sorted((colours / "train").rglob("*.jpg"))
    for data in folds:
        assert {data.paths[i].parts[-3] for i in data.indices("test")} == {"test"}
        assert data.counts()["val"] == {"blue": 3, "red": 3}


def test_a_training_fraction_leaves_other_splits_unchanged(colours: Path) -> None:
    options = ["data=folder", f"data.root={colours}"]
    whole, part = (compose([*options, *more]).data.load() for more in ([], ["data.per_class=3"]))
    assert part.counts()["train"] == {"blue": 3, "red": 3}
    for split in ("val", "test"):
        chosen = [[data.paths[i] for i in data.indices(split)] for data in (whole, part)]
        assert chosen[0] == chosen[1]
    assert len(part) == len(part.sizes) == len(part.digests) == 6 + 4 + 12
    assert hashlib.sha256(part.paths[5].read_bytes()).digest() == part.digests[5]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.fold=0"], "data.fold=0: give data.folds, more than it"),
        (["data.folds=5"], "data.folds=5: say which: data.fold=0 to data.fold=4"),
        (["data.folds=5", "data.fold=5"], "data.fold=5: give data.folds, more than it"),
        (["data.fraction=0.5", "data.per_class=2"], "data.per_class=2: give it or data.fraction"),
    ],
)
def test_parts_that_make_no_sense_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        compose(overrides)
