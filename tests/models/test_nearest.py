"""Test class means and neighbours against slow direct computations that leave each image out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tl_research.models import nearest
from tl_research.models.nearest import NEIGHBOURS, SHARPNESS, TEMPERATURES, choose_k, prototypes, unit

few = settings(deadline=None, max_examples=40)


def blobs(
    images: int, d: int, k: int, views: int = 1, spread: float = 1.0, seed: int = 0, shared: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw features `(images * views, d)` and labels: images around their class's centre, views around their image."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % k)
    rows = rng.normal(size=(k, d))[labels] + spread * rng.normal(size=(images, d))
    rows = rows.repeat(views, axis=0) + 0.2 * rng.normal(size=(images * views, d)) * (views > 1)
    return (rows + shared).astype(np.float32), labels.repeat(views)


def long(features: np.ndarray, normalize: bool) -> np.ndarray:
    """Convert rows to float64, optionally scaled to length 1."""
    rows = features.astype(np.float64)
    if normalize:
        for row in rows:
            row /= np.sqrt(np.sum(row**2)) or 1
    return rows


def means_of(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    return np.stack([sum(rows[i] for i in np.flatnonzero(labels == c)) / np.sum(labels == c) for c in range(k)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# Vectors of length 1


@few
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-1000, 1000, width=32)))
def test_rows_are_scaled_to_length_one(features: np.ndarray) -> None:
    assume(not ((features != 0) & (np.abs(features) < 1e-9)).any())  # whose squares underflow in float32
    before = features.copy()
    rows = unit(features)
    assert rows.dtype == np.float32
    assert np.array_equal(features, before)
    for row, original in zip(rows, features, strict=True):
        length = np.linalg.norm(original.astype(np.float64))
        np.testing.assert_allclose(np.linalg.norm(row), float(length > 0), atol=1e-6)
        np.testing.assert_allclose(row * length, original, rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_stays_zero() -> None:
    assert np.array_equal(unit(np.array([[0, 0], [3, 4]], np.float32)), np.array([[0, 0], [0.6, 0.8]], np.float32))


# Prototypes


def without_own(rows: np.ndarray, labels: np.ndarray, k: int, views: int) -> np.ndarray:
    """Compute squared distances of rows from class means over other images, or over all if there is no other."""
    image = np.arange(len(rows)) // views
    found = np.empty((len(rows), k))
    for i, row in enumerate(rows):
        for c in range(k):
            others = rows[(labels == c) & (image != image[i])]
            mean = (others if len(others) else rows[labels == c]).mean(axis=0)
            found[i, c] = ((row - mean) ** 2).sum()
    return found


def mean_losses(distances: np.ndarray, labels: np.ndarray, views: int) -> np.ndarray:
    """Compute the log loss for each of `SHARPNESS`, over images that are not the only one of their class, if any."""
    images = np.bincount(labels)[labels] // views
    judged = images > 1 if (images > 1).any() else np.ones(len(labels), bool)
    scaled = -distances[judged] / distances.mean()
    own = (np.arange(judged.sum()), labels[judged])
    return np.array([-log_softmax(scaled * sharpness)[own].mean() for sharpness in SHARPNESS])


def sharpness_of(kernel: np.ndarray, means: np.ndarray) -> float:
    """Return the `s` of a kernel `2 * s * means.T`; assert that form, up to what all classes share."""
    means = means - means.mean(axis=0)
    s = float(np.sum(kernel * means.T) / np.sum(means**2)) / 2
    np.testing.assert_allclose(kernel, 2 * s * means.T, rtol=1e-4, atol=1e-5 * np.abs(kernel).max())
    return s


@few
@given(
    features=arrays(np.float32, st.tuples(st.integers(4, 20), st.integers(1, 5)), elements=st.integers(-8, 8)),
    k=st.integers(2, 4),
    views=st.sampled_from([1, 2]),
    normalize=st.booleans(),
)
def test_the_largest_logit_is_the_nearest_class_mean(features: np.ndarray, k: int, views: int, normalize: bool) -> None:
    features = features[: len(features) // views * views]
    images = len(features) // views
    assume(images >= k)
    labels = (np.arange(images) % k).repeat(views)
    kernel, bias = prototypes(features, labels, k, views, normalize=normalize)
    assert kernel.dtype == bias.dtype == np.float32
    rows = long(features, normalize)
    distances = ((rows[:, None] - means_of(rows, labels, k)) ** 2).sum(axis=2)
    nearest_, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest_ > 1e-4 * (1 + nearest_)  # a tie may go either way
    answers = rows.astype(np.float32) @ kernel + bias
    assert np.isfinite(answers).all()
    assert np.array_equal(answers.argmax(axis=1)[clear], distances.argmin(axis=1)[clear])


@pytest.mark.parametrize("normalize", [False, True])
def test_logits_decrease_with_the_squared_distance(normalize: bool) -> None:
    features, labels = blobs(40, 6, 3, spread=2)
    kernel, bias = prototypes(features, labels, 3, 1, normalize=normalize)
    rows = long(features, normalize)
    means = means_of(rows, labels, 3)
    s = sharpness_of(kernel, means)
    assert s > 0
    expected = -s * ((rows[:, None] - means) ** 2).sum(axis=2)
    np.testing.assert_allclose(log_softmax(rows @ kernel + bias), log_softmax(expected), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_the_scale_of_logits_minimizes_leave_one_out_loss(views: int, normalize: bool, seed: int) -> None:
    features, labels = blobs(25, 8, 3, views, spread=2, seed=seed)
    kernel, _ = prototypes(features, labels, 3, views, normalize=normalize)
    rows = long(features, normalize)
    distances = without_own(rows, labels, 3, views)
    losses = mean_losses(distances, labels, views)
    expected = SHARPNESS[losses.argmin()] / distances.mean()
    assert sharpness_of(kernel, means_of(rows, labels, 3)) == pytest.approx(expected, rel=1e-4)


@few
@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    d=st.integers(1, 12),
    views=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@example(counts=[1, 4], d=5, views=1, seed=0)
@example(counts=[1, 4, 2], d=5, views=3, seed=0)
def test_the_only_image_of_a_class_does_not_affect_the_scale(counts: list[int], d: int, views: int, seed: int) -> None:
    assume(max(counts) > 1)
    labels = np.arange(len(counts)).repeat(counts).repeat(views)
    features = np.random.default_rng(seed).normal(size=(len(labels), d)).astype(np.float32)
    kernel, _ = prototypes(features, labels, len(counts), views, normalize=False)
    rows = long(features, False)
    distances = without_own(rows, labels, len(counts), views)
    losses = mean_losses(distances, labels, views)
    chosen = sharpness_of(kernel, means_of(rows, labels, len(counts))) * distances.mean()
    nearest_index = int(np.abs(np.log(SHARPNESS / chosen)).argmin())
    assert chosen == pytest.approx(SHARPNESS[nearest_index], rel=1e-3)
    assert losses[nearest_index] <= losses.min() + 1e-9


@pytest.mark.parametrize("views", [2, 3])
def test_leave_one_out_distances_leave_out_all_views(views: int) -> None:
    features, labels = blobs(13, 4, 3, views)
    labels[:views] = 3  # the only image of its class
    rows = long(features, False)
    found = nearest.leave_one_out_distances(rows, labels, means_of(rows, labels, 4), views)
    expected = without_own(rows, labels, 4, views)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_fast_distances_equal_direct_ones() -> None:
    features, labels = blobs(30, 7, 4, shared=5)
    rows = long(features, False)
    means = means_of(rows, labels, 4)
    np.testing.assert_allclose(
        nearest.squared_distances(rows, means), ((rows[:, None] - means) ** 2).sum(axis=2), rtol=1e-9
    )
    assert (nearest.squared_distances(means, means) >= 0).all()


@pytest.mark.parametrize("views", [1, 3])
def test_noise_gives_uncertain_predictions(views: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 300)).repeat(views, axis=0).astype(np.float32)
    labels = (np.arange(30) % 2).repeat(views)
    kernel, bias = prototypes(features, labels, 2, views, normalize=True)
    fresh = unit(rng.normal(size=(200, 300)))
    assert np.exp(log_softmax(fresh @ kernel + bias)).max() < 0.6, (
        "judged by means they are part of, they are all right"
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_one_image_per_class_is_enough(views: int, normalize: bool) -> None:
    features, labels = blobs(4, 6, 4, views, spread=0.1)
    kernel, bias = prototypes(features, labels, 4, views, normalize=normalize)
    rows = long(features, normalize)
    assert np.isfinite(kernel).all()
    assert np.isfinite(bias).all()
    assert np.array_equal((rows @ kernel + bias).argmax(axis=1), labels)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_equal_rows_give_uncertain_predictions(value: float, normalize: bool) -> None:
    labels = np.array([0] * 5 + [1] * 7 + [2] * 3)
    features = np.full((15, 8), value, np.float32)
    kernel, bias = prototypes(features, labels, 3, 1, normalize=normalize)
    rows = unit(features) if normalize else features
    np.testing.assert_allclose(log_softmax(rows @ kernel + bias), np.log(1 / 3), rtol=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_common_offset_does_not_cost_precision(normalize: bool) -> None:
    features, labels = blobs(60, 16, 3, spread=2, shared=100)
    kernel, bias = prototypes(features, labels, 3, 1, normalize=normalize)
    rows = long(features, normalize)
    means = means_of(rows, labels, 3)
    distances = without_own(rows, labels, 3, 1)
    s = SHARPNESS[mean_losses(distances, labels, 1).argmin()] / distances.mean()
    expected = log_softmax(-s * ((rows[:, None] - means) ** 2).sum(axis=2))
    answers = log_softmax(rows.astype(np.float32) @ kernel + bias)
    np.testing.assert_allclose(answers, expected, atol=0.05)


# Neighbours


def losses_by_hand(
    features: np.ndarray, labels: np.ndarray, classes: int, views: int, ks: Sequence[int], ts: Sequence[float]
) -> dict[tuple[int, float], float]:
    """Compute the leave-one-out log loss of every choice; an image's own views are never its neighbours."""
    rows = long(features, True)
    losses: dict[tuple[int, float], float] = {}
    for k in ks:
        for t in ts:
            image_losses = []
            for i, row in enumerate(rows):
                others = [j for j in range(len(rows)) if j // views != i // views]
                others = sorted(others, key=lambda j: -rows[j] @ row)[:k]
                votes = np.full(classes, 1 / classes)
                for j in others:
                    votes[labels[j]] += np.exp((rows[j] @ row - rows[others[0]] @ row) / t)
                image_losses.append(-np.log(votes[labels[i]] / votes.sum()))
            losses[k, t] = float(np.mean(image_losses))
    return losses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("views", "k", "temperature"),
    [(1, None, None), (3, None, None), (1, 7, None), (3, 7, None), (1, None, 0.3), (3, None, 0.3)],
)
def test_k_and_temperature_are_chosen_as_by_direct_computation(
    views: int, k: int | None, temperature: float | None, seed: int
) -> None:
    features, labels = blobs(20, 5, 3, views, spread=1.5, seed=seed)
    others = len(labels) - views
    losses = losses_by_hand(
        features, labels, 3, views, [k] if k else [n for n in NEIGHBOURS if n <= others],
        [temperature] if temperature else TEMPERATURES,
    )  # fmt: skip
    found = choose_k(features, labels, 3, views, k, temperature)
    assert found in losses
    assert losses[found] <= min(losses.values()) + 1e-5


@few
@given(
    images=st.integers(2, 9), views=st.integers(1, 3), d=st.integers(2, 5), classes=st.integers(2, 3),
    k=st.one_of(st.none(), st.integers(1, 40)), seed=st.integers(0, 1000),
)  # fmt: skip
def test_few_rows_are_enough_to_choose_k(
    images: int, views: int, d: int, classes: int, k: int | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(images * views, d)).astype(np.float32)
    labels = (np.arange(images) % classes).repeat(views)
    found = choose_k(features, labels, classes, views, k, None)
    others = len(labels) - views
    ks = [min(k, others)] if k else [n for n in NEIGHBOURS if n <= others]
    losses = losses_by_hand(features, labels, classes, views, ks, TEMPERATURES)
    assert found[0] == (min(k, len(labels)) if k else found[0])
    assert found[0] in ks or k
    assert losses[min(found[0], others), found[1]] <= min(losses.values()) + 1e-5


def test_given_values_are_used_and_k_is_at_most_the_rows() -> None:
    features, labels = blobs(6, 4, 2)
    assert choose_k(features, labels, 2, 1, 3, 0.7) == (3, 0.7)
    assert choose_k(features, labels, 2, 1, 100, 0.7) == (6, 0.7)
    assert choose_k(features, labels, 2, 1, 6, None)[0] == 6
    assert choose_k(features, labels, 2, 1, 100, None)[0] == 6
    assert choose_k(features, labels, 2, 1, None, 0.7)[1] == 0.7
    assert choose_k(features, labels, 2, 1, None, None)[0] in (1, 3, 5)
    assert choose_k(features, labels, 2, 3, None, None)[0] in (1, 3), "of two images with three views each"


@pytest.mark.parametrize("views", [1, 3])
def test_a_single_image_gives_default_values(views: int) -> None:
    features, labels = np.ones((views, 4), np.float32), np.zeros(views, int)
    k, temperature = choose_k(features, labels, 1, views, None, None)
    assert (k, temperature in TEMPERATURES) == (1, True)
    assert choose_k(features, labels, 1, views, 9, None)[0] == views
    assert choose_k(features, labels, 1, views, None, 0.4) == (1, 0.4)


def test_views_are_not_neighbours_of_their_own_image() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 20)).repeat(3, axis=0).astype(np.float32)
    labels = rng.permutation(np.arange(60) % 2).repeat(3)
    assert choose_k(features, labels, 2, 1, None, None)[0] <= 3, "taken for images of their own, they do"
    assert choose_k(features, labels, 2, 3, None, None)[0] >= 20


@pytest.mark.parametrize("views", [1, 3])
def test_of_many_rows_a_part_is_scored_against_all(monkeypatch: pytest.MonkeyPatch, views: int) -> None:
    features, labels = blobs(90, 6, 3, views, spread=1.5)
    everything = choose_k(features, labels, 3, views, None, None)
    seen: list[tuple[int, ...]] = []
    vote_loss = nearest.vote_loss
    monkeypatch.setattr(nearest, "vote_loss", lambda near, *rest: (seen.append(near.shape), vote_loss(near, *rest))[1])
    monkeypatch.setattr(nearest, "MOST_FOR_CHOOSING", 60)
    part = choose_k(features, labels, 3, views, None, None)
    assert {shape[0] for shape in seen} == {60}
    losses = losses_by_hand(features, labels, 3, views, *zip(everything, part, strict=True))
    assert losses[part] < 1.2 * losses[everything]


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_rows_give_valid_values(value: float) -> None:
    features = np.full((9, 4), value, np.float32)
    k, temperature = choose_k(features, np.arange(9) % 2, 2, 1, None, None)
    assert 1 <= k <= 9
    assert temperature in TEMPERATURES
