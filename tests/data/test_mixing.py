"""Test that mixing uses the same shares for targets and pixels, and depends on batch and draw key only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_research.data.augment.augment import Augment
from tl_research.data.augment.mixing import Mixed, mix_batch
from tl_research.reports import figures

few = settings(deadline=None, max_examples=60)
alphas = st.sampled_from([0.0, 1e-6, 0.2, 1.0, 50.0])
seeds = st.integers(0, 2**32 - 1)


def batch(b: int, k: int, side: int, seed: int = 0) -> Mixed:
    """Draw random pixels and one-hot targets."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (b, side, side, 3), dtype=np.uint8)
    return pixels, np.eye(k, dtype=np.float32)[rng.integers(0, k, b)]


batches = st.builds(batch, st.integers(1, 9), st.integers(1, 5), st.integers(1, 12), seeds)


def mixed(given: Mixed, seed: int, **alphas: float) -> Mixed:
    return mix_batch(*given, np.random.default_rng(seed), **{"mixup": 0.0, "cutmix": 0.0, **alphas})


@few
@given(given_=batches, seed=seeds, mixup=alphas, cutmix=alphas)
def test_mixed_targets_sum_to_one_and_pixels_lie_between(given_: Mixed, seed: int, mixup: float, cutmix: float) -> None:
    if not mixup and not cutmix:
        return
    before = [array.copy() for array in given_]
    pixels, targets = mixed(given_, seed, mixup=mixup, cutmix=cutmix)
    assert (pixels.dtype, pixels.shape) == (np.uint8, before[0].shape)
    assert (targets.dtype, targets.shape) == (np.float32, before[1].shape)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert (targets >= 0).all()
    assert (pixels >= before[0].min(0)).all()
    assert (pixels <= before[0].max(0)).all()
    assert all(np.array_equal(a, b) for a, b in zip(given_, before, strict=True)), "what was given stays as it was"


@few
@given(given_=st.builds(batch, st.integers(2, 9), st.just(9), st.integers(2, 12), seeds), seed=seeds)
def test_blended_pixels_are_the_targets_mean_of_two_images(given_: Mixed, seed: int) -> None:
    images = given_[0]
    targets = np.eye(9, dtype=np.float32)[: len(images)]  # one class per image
    pixels, shares = mixed((images, targets), seed, mixup=1.0)
    assert ((shares > 0).sum(1) <= 2).all()
    expected = np.tensordot(shares[:, : len(images)], images.astype(float), axes=1)
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-3


@few
@given(b=st.integers(2, 9), side=st.integers(1, 20), seed=seeds)
def test_a_box_of_the_partner_is_as_large_as_its_share(b: int, side: int, seed: int) -> None:
    images = np.broadcast_to(np.arange(b, dtype=np.uint8)[:, None, None, None], (b, side, side, 3))
    pixels, shares = mixed((images, np.eye(b, dtype=np.float32)), seed, cutmix=1.0)
    for image, share in zip(pixels, shares, strict=True):
        counted = np.bincount(image[..., 0].ravel(), minlength=b) / side**2
        np.testing.assert_allclose(counted, share, atol=1e-6)
    places = (pixels != images)[..., 0]
    assert len({place.tobytes() for place in places if place.any()}) <= 1, "one box for all"
    if places.any():
        rows, columns = np.nonzero(places.any(0))
        assert places.any(0).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


@pytest.mark.parametrize(("kind", "mean", "spread"), [("mixup", 0.5, 0.29), ("cutmix", 0.68, 0.19)])
def test_shares_are_drawn_from_beta(kind: str, mean: float, spread: float) -> None:
    given_ = batch(2, 2, 24)[0], np.eye(2, dtype=np.float32)
    uniform, rare = (
        np.array([mixed(given_, seed, **{kind: alpha})[1][0, 0] for seed in range(1500)]) for alpha in (1.0, 0.1)
    )
    own = uniform[uniform < 1]  # half of the permutations of two are the identity
    assert 600 < len(own) < 900
    assert abs(own.mean() - mean) < 0.06  # the clipped part of a box remains the image's own
    assert abs(own.std() - spread) < 0.05
    nearly_one = ((rare > 0.95) | (rare < 0.05)).mean()
    assert nearly_one > ((uniform > 0.95) | (uniform < 0.05)).mean() + 0.1, "a small alpha leaves most nearly pure"


def test_with_both_methods_one_is_chosen_at_random() -> None:
    images = np.broadcast_to(np.array([0, 200], np.uint8)[:, None, None, None], (2, 16, 16, 3))
    cut = blended = 0
    for seed in range(300):
        values = set(mixed((images, np.eye(2, dtype=np.float32)), seed, mixup=1.0, cutmix=1.0)[0][0].ravel().tolist())
        cut += values == {0, 200}
        blended += len(values) == 1 and not values <= {0, 200}
    assert 50 < cut < 100  # in the other half each is its own partner
    assert 50 < blended < 100


@few
@given(draw_key=st.tuples(seeds, st.integers(0, 50), st.integers(0, 50)), seed=seeds)
def test_mixing_depends_on_recipe_seed_epoch_and_number_only(draw_key: tuple[int, int, int], seed: int) -> None:
    given_ = batch(7, 3, 8)
    recipe = Augment(mixup=0.2, cutmix=1.0, seed=seed)
    first = recipe.mix(*given_, draw_key)
    np.random.default_rng(0).random()
    recipe.mix(*given_, (0, 0, 1))
    again = Augment(mixup=0.2, cutmix=1.0, seed=seed, flip=True).mix(*given_, draw_key)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_every_seed_epoch_and_number_mixes_differently() -> None:
    given_ = batch(16, 16, 8)
    occasions = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 2, 1), (2, 1, 0)]
    found: list[Any] = [
        Augment(mixup=1.0, seed=seed).mix(*given_, draw_key)[0].tobytes() for seed in (0, 1) for draw_key in occasions
    ]
    assert len(set(found)) == len(found)


def test_a_figure_of_a_batch_names_classes_and_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    page = figures._page
    monkeypatch.setattr(
        figures, "_page", lambda titled, columns: (titles.extend(t for _, t, _ in titled), page(titled, columns))[1]
    )
    targets = np.array([[1, 0, 0], [0.3, 0, 0.7], [0.001, 0.999, 0], *17 * [[0, 1, 0]]], np.float32)
    drawn = figures.batch(batch(20, 3, 8)[0], targets, ["cat", "dog", "owl"])
    assert titles == ["cat", "owl 70%\ncat 30%", *14 * ["dog"]]
    assert (drawn.dtype, drawn.ndim, drawn.shape[2]) == (np.uint8, 3, 3)
    assert figures.batch(batch(2, 3, 8)[0], targets[:2], ["cat", "dog", "owl"]).shape[0] < drawn.shape[0] / 2
