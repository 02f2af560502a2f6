"""Test that augmentation depends on image, recipe and draw key only, applies to training only, and that the views of an
image are never divided."""

from __future__ import annotations

import colorsys
import dataclasses
import hashlib
import io
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import ValidationError

from tests.conftest import draw_noise
from tests.experiment.test_experiment import numbers, run, table
from tl_research import InputError, compose
from tl_research.data.augment.augment import Augment, _box, _erased, augmented_pixels
from tl_research.data.augment.rand_augment import OPERATIONS
from tl_research.data.datamodule import DataModule
from tl_research.data.decode import Resize, decode_pixels
from tl_research.data.loader import numbered_batches
from tl_research.data.sources import Folder
from tl_research.features import row_source
from tl_research.features.extraction import ORIGINAL
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.training import closed_form, inputs, logistic_regression
from tl_research.training.logistic_regression import choose_l2, solve
from tl_research.training.optimizer import LBFGS

few = settings(deadline=None, max_examples=25)
many = settings(deadline=None, max_examples=300)

RESIZES: tuple[Resize, ...] = ("squash", "crop", "pad")
LIGHT: dict[str, Any] = {"flip": True, "crop": 0.6, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
CHANGES: dict[str, Any] = {**LIGHT, "rotate": 20.0, "hue": 0.2, "rand_augment": 2, "erase": 0.5}
MIXES: dict[str, Any] = {"mixup": 0.2, "cutmix": 1.0}
MOST = {
    "rotate": 180,
    "brightness": 0.9,
    "contrast": 0.9,
    "saturation": 0.9,
    "hue": 0.5,
    "erase": 1,
    "rand_magnitude": 30,
}
recipes = st.builds(
    Augment,
    flip=st.booleans(),
    crop=st.floats(0.05, 1),
    rand_augment=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    **{field: st.floats(0, most) for field, most in {**MOST, "mixup": 5, "cutmix": 5}.items()},
)
occasions = st.one_of(st.integers(0, 5), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 100)).map(list))


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """Draw patches of colour; no two rows, columns or halves are alike."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PICTURE = encoded(picture())
LARGE = encoded(picture(900, 600), "JPEG")  # so large that it is decoded at reduced scale


def version(recipe: Augment, draw_key: object, content: bytes = PICTURE, resize: Resize = "squash") -> np.ndarray:
    return augmented_pixels(content, 32, resize, recipe, recipe.digest(content, draw_key))


# Dependence on image, recipe and draw key


@pytest.mark.parametrize("resize", RESIZES)
@few
@given(recipe=recipes, draw_key=occasions)
@example(recipe=Augment(seed=7, rand_magnitude=20), draw_key=[3, 5])
def test_only_keys_that_change_images_change_them(resize: Resize, recipe: Augment, draw_key: object) -> None:
    idle = dataclasses.replace(recipe, **{field: getattr(Augment(), field) for field in CHANGES})
    assert not idle.changes_images
    assert idle.changes_nothing == (idle.mixup == idle.cutmix == 0)
    assert recipe.changes_images == (recipe != idle)
    assert recipe.changes_nothing == (not recipe.changes_images and not recipe.mixes)
    for content in (PICTURE, LARGE):
        assert np.array_equal(version(idle, draw_key, content, resize), decode_pixels(content, 32, resize))


def test_every_key_is_tested() -> None:
    assert {*CHANGES, *MIXES, "rand_magnitude", "seed"} == {field.name for field in dataclasses.fields(Augment)}


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0}, {"crop": 1.1}, {"rotate": -1}, {"rotate": 181}, {"brightness": 1}, {"contrast": -0.1},
     {"saturation": 1.5}, {"seed": -1}, {"zoom": 2}, {"hue": 0.6}, {"rand_augment": -1}, {"rand_magnitude": 31},
     {"erase": 1.1}, {"mixup": -0.1}, {"cutmix": -1}],
    ids=str,
)  # fmt: skip
def test_a_recipe_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augment(**wrong)


@few
@given(recipe=recipes, draw_key=occasions, resize=st.sampled_from(RESIZES))
def test_a_version_depends_on_image_recipe_and_draw_key_only(recipe: Augment, draw_key: object, resize: Resize) -> None:
    tasks = [(recipe, draw_key, PICTURE), (Augment(**CHANGES), [0, 1], PICTURE), (recipe, 9, encoded(picture(seed=1)))]
    alone = [version(*task, resize) for task in tasks]
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(tasks)), 4))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: version(*tasks[i], resize), order))
    assert all(np.array_equal(pixels, alone[i]) for i, pixels in zip(order, found, strict=True))
    mixing = dataclasses.replace(recipe, mixup=recipe.mixup + 0.1, cutmix=0.0)
    assert mixing.digest(PICTURE, draw_key) == recipe.digest(PICTURE, draw_key)


def test_every_image_recipe_seed_and_draw_key_has_its_version() -> None:
    other = {"crop": 0.7, "rotate": 30.0, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
    other |= {"rand_augment": 1, "rand_magnitude": 10, "erase": 0.4, "flip": False, "seed": 1}
    digests = [
        recipe.digest(image, draw_key)
        for recipe in (Augment(), *(Augment(**{**CHANGES, **one}) for one in ({}, *({k: v} for k, v in other.items()))))
        for image in (PICTURE, PICTURE + b"\0", b"")
        for draw_key in (0, 1, 10, [0, 0], [0, 1], [1, 0], [10, 1], [1, 10], [101])
    ]
    assert {len(digest) for digest in digests} == {32}
    assert len(set(digests)) == len(digests) == 13 * 3 * 9
    drawn = {Augment(**LIGHT).apply(picture(), 32, "squash", digest).tobytes() for digest in digests}
    assert len(drawn) == len(digests)


# The changes


@pytest.mark.parametrize("resize", RESIZES)
def test_flip_mirrors_half_of_the_images_exactly(resize: Resize) -> None:
    plain = decode_pixels(PICTURE, 32, resize)
    found = [version(Augment(flip=True), draw_key, resize=resize) for draw_key in range(200)]
    mirrored = [np.array_equal(pixels, plain[:, ::-1]) for pixels in found]
    assert all(mirror or np.array_equal(pixels, plain) for mirror, pixels in zip(mirrored, found, strict=True))
    assert 70 < sum(mirrored) < 130


sides = st.integers(1, 3000)
shares = st.floats(0.001, 1, exclude_max=True)
seeds = st.integers(0, 2**32 - 1)


@many
@given(width=sides, height=sides, least=shares, seed=seeds)
@example(width=1, height=1, least=0.001, seed=0)
@example(width=3000, height=1, least=0.001, seed=0)
def test_a_crop_has_its_share_and_nearly_the_images_shape(width: int, height: int, least: float, seed: int) -> None:
    left, top, right, bottom = _box((width, height), least, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    assert (w + 0.5) * (h + 0.5) >= least * width * height * (1 - 1e-9)  # sides are rounded
    assert (w + 1) / width >= 3 / 4 * (h - 1) / height
    assert (w - 1) / width <= 4 / 3 * (h + 1) / height


def test_rotation_stays_in_range_and_fills_corners_with_white(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[float] = []
    rotate = Image.Image.rotate
    monkeypatch.setattr(
        Image.Image, "rotate", lambda self, angle, *a, **k: (angles.append(angle), rotate(self, angle, *a, **k))[1]
    )
    black = encoded(Image.new("RGB", (40, 40)))
    found = np.stack([version(Augment(rotate=30), draw_key, black) for draw_key in range(100)])
    assert len(angles) == 100
    assert -30 <= min(angles) < -25
    assert 25 < max(angles) <= 30
    assert abs(np.mean(angles)) < 6
    assert (found[:, 12:20, 12:20] == 0).all()
    turned = found[np.abs(angles) > 20]
    assert (turned[:, [0, 0, -1, -1], [0, -1, 0, -1]] > 200).all()


ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@pytest.mark.parametrize("strength", [0.2, 0.7])
@pytest.mark.parametrize("field", ENHANCERS)
def test_light_and_colour_are_scaled_within_their_range(field: str, strength: float) -> None:
    image = Image.fromarray(np.asarray(picture(32, 32)) // 3 + 40)  # away from both ends, so that nothing is clipped
    ends = [np.asarray(ENHANCERS[field](image).enhance(by), float) for by in (1 - strength, 1 + strength)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    versions = np.stack([version(Augment(**{field: strength}), draw_key, encoded(image)) for draw_key in range(100)])
    assert (versions >= low - 1).all()
    assert (versions <= high + 1).all()
    span = ends[1] - ends[0]
    shares = [float(np.sum((pixels - ends[0]) * span) / np.sum(span**2)) for pixels in versions]
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    assert 0.4 < np.mean(shares) < 0.6


def test_hue_shifts_either_way_and_keeps_greys() -> None:
    grey, red = (encoded(Image.new("RGB", (32, 32), colour)) for colour in ((90, 90, 90), (150, 80, 80)))
    assert (version(Augment(hue=0.5), 0, grey) == 90).all()
    turned = np.array([version(Augment(hue=0.1), draw_key, red)[0, 0] for draw_key in range(60)], float)
    hues = np.array([colorsys.rgb_to_hsv(*pixel / 255)[0] for pixel in turned])
    hues = (hues + 0.5) % 1 - 0.5
    assert -0.13 < hues.min() < -0.07
    assert 0.07 < hues.max() < 0.13
    np.testing.assert_allclose(turned @ (0.213, 0.715, 0.072), np.dot((150, 80, 80), (0.213, 0.715, 0.072)), atol=1.5)


SMOOTH = picture(64, 64).filter(ImageFilter.GaussianBlur(2))
SIGNED = {"rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"}
WITHOUT_STRENGTH = {"identity", "autocontrast", "equalize"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_stronger_operation_changes_more(name: str) -> None:
    def change(strength: float) -> float:
        changed = OPERATIONS[name](SMOOTH, strength)
        assert (changed.mode, changed.size) == ("RGB", SMOOTH.size)
        return float(np.abs(np.asarray(changed, float) - np.asarray(SMOOTH, float)).mean())

    if name in WITHOUT_STRENGTH:
        assert change(0) == change(1) == change(-1)
        assert (change(1) > 0) == (name != "identity")
        return
    assert change(0) == 0
    for sign in (-1, 1):
        assert 0 < change(0.3 * sign) < change(sign)
    apart = np.asarray(OPERATIONS[name](SMOOTH, 1), float) - np.asarray(OPERATIONS[name](SMOOTH, -1), float)
    assert bool(apart.any()) == (name in SIGNED)


def test_the_strongest_operations_are_those_of_the_paper() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
    found = {name: np.asarray(operation(ramp, 1)) for name, operation in OPERATIONS.items()}
    assert len(found) == 14
    assert (found["solarize"][0, :, 0] == 255 - np.arange(256)).all()
    assert set(found["posterize"].ravel()) == set(range(0, 256, 16))
    assert (found["translate_x"][0, :, 0] == [*115 * [255], *range(141)]).all()
    assert (found["translate_y"][:115] == 255).all()
    assert (found["translate_y"][115:] == np.asarray(ramp)[:141]).all()
    assert (found["rotate"][0, 0] == 255).all()
    np.testing.assert_allclose(found["shear_x"][::16, 0, 0], 0.3 * np.arange(0, 256, 16), atol=1)
    np.testing.assert_allclose(found["brightness"], np.minimum(1.9 * np.asarray(ramp), 255), atol=1)


def test_erase_is_the_share_of_images_with_a_rectangle() -> None:
    black = encoded(Image.new("RGB", (32, 32)))
    changed = [version(Augment(erase=0.3), draw_key, black).any() for draw_key in range(300)]
    assert 65 < sum(changed) < 115


@many
@given(seed=seeds, size=st.integers(1, 300))
def test_erasing_fills_2_to_33_percent_in_one_rectangle(seed: int, size: int) -> None:
    erased = np.asarray(_erased(Image.new("RGB", (size, size), (0, 0, 0)), np.random.default_rng(seed)))
    rows, columns = (np.flatnonzero(erased.any(axis=(axis, 2))) for axis in (1, 0))
    if not len(rows):  # a pixel of noise may be black
        assert size < 8
        return
    h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert (h - 1.5) * (w - 1.5) <= 0.33 * size**2
    assert (h + 1.5) * (w + 1.5) >= 0.02 * size**2
    assert (h - 1.5) / (w + 1.5) <= 3.3
    assert (w - 1.5) / (h + 1.5) <= 3.3
    if h * w > 1000:
        inside = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 110 < inside.mean() < 145
        assert 60 < inside.std() < 85


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3000), (3000, 1), (3, 700), (90, 60)], ids=str)
def test_every_version_has_the_networks_shape(size: tuple[int, int], resize: Resize) -> None:
    recipe, content = Augment(flip=True, crop=0.01, rand_augment=5, **MOST), encoded(picture(*size))
    versions = np.stack([version(recipe, draw_key, content, resize) for draw_key in range(4)])
    assert (versions.dtype, versions.shape) == (np.uint8, (4, 32, 32, 3))
    assert augmented_pixels(content, 1, resize, recipe, recipe.digest(content, 0)).shape == (1, 1, 3)


# Augmented examples and streams


def load(root: Path, **augment: Any) -> DataModule:
    return Folder(root=str(root), augment=Augment(**augment)).load()


@pytest.mark.parametrize("resize", RESIZES)
def test_augmentation_depends_on_content_and_draw_key(colours: Path, resize: Resize) -> None:
    data = Folder(root=str(colours), resize=resize, augment=Augment(**CHANGES)).load()
    for index, draw_key in ((0, 2), (7, [3, 1])):
        content = data.paths[index].read_bytes()
        digest = data.augment.digest(hashlib.sha256(content).digest(), draw_key)
        expected = augmented_pixels(content, 24, resize, data.augment, digest)
        assert np.array_equal(data.augmented(index, 24, draw_key), expected)
        assert not np.array_equal(expected, data.pixels(index, 24))


def test_a_changed_or_deleted_file_is_named(colours: Path, tmp_path: Path) -> None:
    data = load(shutil.copytree(colours, tmp_path / "own"), **CHANGES)
    data.paths[0].write_bytes(data.paths[1].read_bytes())
    data.paths[2].unlink()
    for index, told in ((0, "it has changed since the run began"), (2, "no such file; it was readable when")):
        with pytest.raises(InputError, match=f"^{data.paths[index]}: {told}"):
            data.augmented(index, 16, 0)


def whole(data: DataModule, chosen: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and targets of an epoch in batches of 5."""
    pixels, targets = zip(*data.epoch(chosen, 16, 5, **options), strict=True)
    return np.concatenate(pixels), np.concatenate(targets)


def test_evaluation_neither_augments_nor_mixes(colours: Path) -> None:
    data = load(colours, **CHANGES, **MIXES)
    chosen = data.indices("val", "test")
    for epoch in (0, 1):
        pixels, targets = whole(data, chosen, epoch=epoch)
        assert np.array_equal(pixels, [data.pixels(int(i), 16) for i in chosen])
        assert np.array_equal(targets, np.eye(2)[data.labels[chosen]])


def test_training_images_are_augmented_by_seed_and_epoch(colours: Path) -> None:
    data = load(colours, **CHANGES)
    chosen = data.indices("train")
    seen: dict[int, set[bytes]] = {int(i): {data.pixels(i, 16).tobytes()} for i in chosen}
    for seed, epoch in itertools.product((0, 6), range(3)):
        at = np.concatenate([batch for _, batch in numbered_batches(chosen, 5, seed=seed, epoch=epoch)])
        pixels, targets = whole(data, chosen, seed=seed, epoch=epoch)
        assert np.array_equal(pixels, [data.augmented(i, 16, [seed, epoch]) for i in at])
        assert np.array_equal(targets, np.eye(2)[data.labels[at]])
        for i, image in zip(at, pixels, strict=True):
            seen[i].add(image.tobytes())
    assert {len(versions) for versions in seen.values()} == {1 + 6}, "each differs, from the image itself, too"


@pytest.mark.parametrize(("epoch", "skip"), [(1, 2), (1, 0), (0, 3)])
def test_batches_are_mixed_after_augmentation_by_their_number(colours: Path, epoch: int, skip: int) -> None:
    data, apart = load(colours, **LIGHT, **MIXES), load(colours, **LIGHT)
    chosen = data.indices("train")
    with data.epoch(chosen, 16, 5, seed=4) as left:
        next(left)
    mixed = list(data.epoch(chosen, 16, 5, seed=4, epoch=epoch, skip=skip))
    plain = list(apart.epoch(chosen, 16, 5, seed=4, epoch=epoch))[skip:]
    for number, (found, batch) in enumerate(zip(mixed, plain, strict=True), start=skip):
        expected = data.augment.mix(*batch, (4, epoch, number))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert any(((targets > 0) & (targets < 1)).any() for _, targets in mixed)


# Whole runs


QUICK = ("callbacks=none", "data/augment=light")


def views_of(data: DataModule, indices: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Compute features `(n, views, d)` directly."""
    network = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    table = FeatureTable(network, data, Features(), "keras", 2)
    return np.stack([table.get(indices, view) for view in views], axis=1)


def assert_losses_fall(done: Run, epochs: int) -> None:
    losses = [float(row["loss"]) for row in table(done.directory / "history.csv")]
    assert len(losses) == epochs
    assert losses[-1] < losses[0]


@pytest.fixture
def augmented(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any, bytes]]:
    """Record index, draw key and pixels of the images that are augmented."""
    seen: list[tuple[int, Any, bytes]] = []
    really = DataModule.augmented

    def noted(self: DataModule, index: int, size: int, draw_key: object) -> np.ndarray:
        pixels = really(self, index, size, draw_key)
        seen.append((index, draw_key, pixels.tobytes()))
        return pixels

    monkeypatch.setattr(DataModule, "augmented", noted)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("by", ["solving", "epochs"])
def test_a_head_learns_from_all_views_which_are_stored(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    given: list[tuple[np.ndarray, np.ndarray]] = []
    passes: list[int] = []
    passed, feature_inputs = row_source.run_batches, inputs.feature_inputs

    def solved(features: np.ndarray, labels: np.ndarray, *args: Any) -> Any:
        given.append((features, labels))
        assert args[2] == 3, "views"
        return solve(features, labels, *args)

    def learned(head: Any, train: Any, validation: Any, *args: Any) -> Any:
        given.extend([train, validation])
        return feature_inputs(head, train, validation, *args)

    monkeypatch.setattr(closed_form, "solve", solved)
    monkeypatch.setattr(inputs, "feature_inputs", learned)
    monkeypatch.setattr(row_source, "run_batches", lambda *args: (passes.append(1), passed(*args))[1])
    options = [*QUICK, "features.views=3"]
    if by == "epochs":
        options += ["optimizer=adam", "optimizer.learning_rate=0.05", "transfer.head.epochs=10"]
    first, again = (run(tmp_path / name, colours, *options) for name in ("a", "b"))
    train, val, test = (first.metrics[f"num_{split}"] for split in ("train", "val", "test"))
    computed = 3 * train + val + test + (3 * val if by == "solving" else 0)
    assert (first.metrics["features_computed"], first.metrics["features_hit"]) == (computed, 0)
    assert (again.metrics["features_computed"], again.metrics["features_hit"]) == (0, computed)
    assert len(passes) == 1, "all that is needed in one pass over the images"
    assert numbers(again) == numbers(first)
    assert (again.directory / "predictions.csv").read_text() == (first.directory / "predictions.csv").read_text()
    assert first.metrics["test_accuracy"] > 0.9
    if by == "epochs":
        assert_losses_fall(first, 10)

    data, all_views = load(colours, **LIGHT), range(3)
    second: tuple[list[str], Sequence[int]] = (
        (["train", "val"], all_views) if by == "solving" else (["val"], [ORIGINAL])
    )
    for (features, labels), (splits, views) in zip(given, 2 * [(["train"], all_views), second], strict=True):
        indices = data.indices(*splits)
        expected = views_of(data, indices, views).reshape(len(views) * len(indices), -1)
        np.testing.assert_allclose(features, expected, atol=1e-4)
        assert labels.tolist() == data.labels[indices].repeat(len(views)).tolist()
        assert len(np.unique(features, axis=0)) == len(features), "no view twice"


@pytest.mark.slow
def test_without_views_every_epoch_trains_on_new_versions(
    tmp_path: Path, colours: Path, augmented: list[tuple[int, Any, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: set[int] = set()
    pixels = DataModule.pixels
    monkeypatch.setattr(DataModule, "pixels", lambda self, i, size: (plain.add(i), pixels(self, i, size))[1])
    options = ["optimizer=adam", "optimizer.learning_rate=0.03", "transfer.head.epochs=8"]
    done = run(tmp_path / "run", colours, *QUICK, *options)
    data = load(colours)
    versions = Counter(index for index, _ in {(index, content) for index, _, content in augmented})
    assert set(versions) == set(data.indices("train").tolist())
    assert min(versions.values()) >= 8
    assert plain == set(data.indices("val", "test").tolist())
    assert_losses_fall(done, 8)


@pytest.mark.slow
def test_a_trained_backbone_sees_new_versions_despite_views(
    tmp_path: Path, colours: Path, augmented: list[tuple[int, Any, bytes]]
) -> None:
    run(tmp_path / "run", colours, *QUICK, "features.views=2", "transfer=finetune", "transfer.backbone.epochs=2")
    assert {draw_key for _, draw_key, _ in augmented if isinstance(draw_key, int)} == {0, 1}
    epochs = {tuple(draw_key) for _, draw_key, _ in augmented if not isinstance(draw_key, int)}
    assert len(epochs) >= 2
    assert {seed for seed, _ in epochs} == {0}


@pytest.mark.parametrize("head", ["linear", "prototype", "knn"])
def test_augmentation_that_no_head_would_see_is_refused(colours: Path, head: str) -> None:
    with pytest.raises(InputError, match=r"add features\.views=4") as caught:
        compose(["data=folder", f"data.root={colours}", "data/augment=light", f"head={head}"])
    assert "\n" not in str(caught.value)
    assert compose([f"head={head}", "data/augment=light", "features.views=1"]).features.views == 1
    assert compose([f"head={head}", "data.augment.seed=3"]).features.views is None


@pytest.mark.parametrize("key", ["views", "test_views"])
def test_views_without_augmentation_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"^features\.{key}: all views would be equal"):
        compose([f"features.{key}=3", "optimizer=adam"])
    with pytest.raises(InputError, match=f"features.{key}"):
        compose([f"features.{key}=0", "optimizer=adam", "data/augment=light"])


@pytest.mark.slow
def test_test_views_are_averaged_in_addition_to_the_plain_result(tmp_path: Path) -> None:
    noise = draw_noise(tmp_path / "noise", ("train", "test"), 10)  # so that predictions are uncertain
    options = [*QUICK, "features.views=1", "optimizer.l2=1e-3"]  # a penalty weak enough for confident predictions
    plain = run(tmp_path / "plain", noise, *options)
    done = run(tmp_path / "run", noise, *options, "features.test_views=2")
    added = {key: value for key, value in numbers(done).items() if "tta" in key}
    assert numbers(done) == {**numbers(plain), **added}
    assert not added.keys() & plain.metrics.keys()
    assert done.metrics["features_computed"] == 2 * done.metrics["num_test"]

    data = load(noise, **LIGHT)
    test = data.indices("test")
    versions = [[data.pixels(i, 32) for i in test]]
    versions += [[data.augmented(i, 32, view) for i in test] for view in (0, 1)]
    model = done.model()
    answers = [softmax(np.asarray(model(np.stack(pixels).astype(np.float32)))) for pixels in versions]
    averaged, labels = np.mean(answers, axis=0), data.labels[test]
    loss = -np.mean(np.log(averaged[np.arange(len(test)), labels]))
    assert added["test_tta_accuracy"] == np.mean(averaged.argmax(axis=1) == labels)
    assert added["test_tta_loss"] == pytest.approx(loss, rel=1e-4)
    assert abs(added["test_tta_loss"] - done.metrics["test_loss"]) > 1e-4


# Cross-validation


def noise_rows(images: int, d: int, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, d)).astype(np.float32), rng.permutation(np.arange(images) % classes)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "most", "torn"), [(60, 5000, 1), (200, 180, 0.65)], ids=["all", "part"])
def test_views_of_one_image_are_held_out_together(
    monkeypatch: pytest.MonkeyPatch, images: int, most: int, torn: float
) -> None:
    monkeypatch.setattr(logistic_regression, "MOST_FOR_CHOOSING", most)
    features, labels = (values.repeat(3, axis=0) for values in noise_rows(images, 80))
    torn_apart, kept = (choose_l2(features, labels, LBFGS(), 0, views).accuracy for views in (1, 3))
    assert torn_apart == pytest.approx(torn), "or this test would find nothing"
    assert kept is not None
    assert kept < 0.6
    assert solve(features, labels, LBFGS(), 0, 3).cv_accuracy == pytest.approx(kept, abs=0.1)
    clear = features + 10 * labels[:, None].astype(np.float32)
    assert choose_l2(clear, labels, LBFGS(), 0, views=3).accuracy == 1


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("more", [1, 2, 5])
def test_slightly_more_images_than_are_used_to_choose_work(
    monkeypatch: pytest.MonkeyPatch, views: int, more: int
) -> None:
    monkeypatch.setattr(logistic_regression, "MOST_FOR_CHOOSING", 120)
    features, labels = (values.repeat(views, axis=0) for values in noise_rows(120 // views + more, 5, classes=4))
    assert solve(features, labels, LBFGS(), 0, views).cv_accuracy is not None


# Pixels of the current version

ROW, COLUMN = np.mgrid[:40, :60]
SQUARES = np.stack([(COLUMN // 8 * 50 + ROW // 6 * 30 * n) % 256 for n in (1, 2, 3)], axis=-1).astype(np.uint8)
FIELDS: dict[str, dict[str, Any]] = {
    **{name: {name: value} for name, value in CHANGES.items()},
    "rand_augment": {"rand_augment": 3, "rand_magnitude": 20.0},
    "erase": {"erase": 1.0},
    "all": CHANGES,
}
DRAWN = {
    "flip": "e416e9f12c36bf58",
    "crop": "4dd2dcaed7473d6f",
    "brightness": "57bd9525b9c764f2",
    "contrast": "ce48c29be3bc4ae0",
    "saturation": "35a9f569970464c2",
    "rotate": "deccced519297210",
    "hue": "04babd86a1143e01",
    "rand_augment": "bcd9d19aad32ec13",
    "erase": "a302687b41951dac",
    "all": "f36e02320883f43e",
}
OPERATED = {
    "identity": "5e694827c921e687",
    "autocontrast": "fb2ae460363e1518",
    "equalize": "05854a0a618bb82d",
    "rotate": "2a75c5dc2f8ffc61",
    "solarize": "2c42138d500d93ac",
    "color": "2072adc06e659c52",
    "posterize": "94d37652c08f40d6",
    "contrast": "a5fae068669febb2",
    "brightness": "32ea2296de673708",
    "sharpness": "9bd2ff7911852a72",
    "shear_x": "adbb4f5e63d15fe0",
    "shear_y": "911cdda243dfc05c",
    "translate_x": "f4d19b9b26a9664c",
    "translate_y": "22d1a1e33ee03f15",
}
CHANGED = "other pixels than before: change AUGMENT_VERSION in augment.py (and CODE_VERSION), then this digest"
MIXED: dict[str, str] = {
    "mixup": "dc4a3dac9abebbc4",
    "cutmix": "b96f5d885ff982b7",
    "mixup+cutmix": "08db4ea657de602b",
}
MIXED_CHANGED = "batches are mixed in another way: change CODE_VERSION in identity.py, then this digest"


def short(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FIELDS)
def test_changed_augmented_images_need_a_new_version(name: str) -> None:
    """Digests that depend neither on the version nor on how Pillow writes a file."""
    recipe, image = Augment(**FIELDS[name]), Image.fromarray(SQUARES)
    versions = [recipe.apply(image, 32, "crop", hashlib.sha256(bytes([number])).digest()) for number in range(4)]
    assert short(np.stack(versions)) == DRAWN[name], CHANGED


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_changed_operation_needs_a_new_version(name: str) -> None:
    changed = [OPERATIONS[name](Image.fromarray(SQUARES), strength) for strength in (-0.6, 0.4)]
    assert short(np.stack(changed)) == OPERATED[name], CHANGED


@pytest.mark.parametrize("alphas", [{"mixup": 1.0}, {"cutmix": 1.0}, MIXES], ids=["mixup", "cutmix", "both"])
def test_changed_mixing_needs_a_new_version(alphas: dict[str, float]) -> None:
    batch = np.stack([np.roll(SQUARES, shift, axis=0)[:32, :32] for shift in range(6)])
    pixels, targets = Augment(**alphas).mix(batch, np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]], (0, 1, 2))
    assert not np.array_equal(pixels, batch)
    assert short(np.append(pixels, np.rint(targets * 1000))) == MIXED["+".join(alphas)], MIXED_CHANGED
