"""Test class means and neighbours against slow direct computations that leave each image out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tl_research.models import nearest
from tl_research.models.nearest import (
    NEIGHBOURS,
    SHARPNESS,
    TEMPERATURES,
    Whitening,
    choose_k,
    prototypes,
    unit,
    whitened_prototypes,
)

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
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return rows / np.where(lengths > 0, lengths, 1) if normalize else rows


def means_of(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    return np.stack([sum(rows[i] for i in np.flatnonzero(labels == c)) / np.sum(labels == c) for c in range(k)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# Vectors of length 1


@few
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-1000, 1000, width=32)))
@example(np.array([[0, 0], [3, 4]], np.float32))
def test_rows_are_scaled_to_length_one_and_zeros_stay_zeros(features: np.ndarray) -> None:
    assume(not ((features != 0) & (np.abs(features) < 1e-9)).any())  # whose squares underflow in float32
    before = features.copy()
    rows = unit(features)
    assert rows.dtype == np.float32
    assert np.array_equal(features, before)
    for row, original in zip(rows, features, strict=True):
        length = np.linalg.norm(original.astype(np.float64))
        np.testing.assert_allclose(np.linalg.norm(row), float(length > 0), atol=1e-6)
        np.testing.assert_allclose(row * length, original, rtol=1e-5, atol=1e-5)


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


@few
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    d=st.integers(2, 12),
    views=st.integers(1, 3),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(counts=[1, 4], d=5, views=1, normalize=False, seed=0)
@example(counts=[1, 4, 2], d=5, views=3, normalize=False, seed=0)
@example(counts=[9, 8, 8], d=8, views=1, normalize=True, seed=0)
@example(counts=[9, 8, 8], d=8, views=3, normalize=True, seed=1)
def test_logits_fall_with_the_distance_at_the_best_scale(
    counts: list[int], d: int, views: int, normalize: bool, seed: int
) -> None:
    """Leave-one-out loss decides the scale; an image that is the only one of its class does not count."""
    assume(max(counts) > 1)
    k, rng = len(counts), np.random.default_rng(seed)
    labels = rng.permutation(np.arange(k).repeat(counts)).repeat(views)
    features = (rng.normal(size=(k, d))[labels] + rng.normal(size=(len(labels), d))).astype(np.float32)
    kernel, bias = prototypes(features, labels, k, views, normalize=normalize)
    assert kernel.dtype == bias.dtype == np.float32
    rows = long(features, normalize)
    distances = without_own(rows, labels, k, views)
    losses = mean_losses(distances, labels, views)
    queries = np.vstack([rows, rng.normal(size=(20, d))])
    squares = ((queries[:, None] - means_of(rows, labels, k)) ** 2).sum(axis=2) / distances.mean()
    found = log_softmax(queries @ kernel + bias)
    by_scale = [log_softmax(-scale * squares) for scale in SHARPNESS]
    chosen = int(np.argmin([np.abs(found - expected).max() for expected in by_scale]))
    np.testing.assert_allclose(found, by_scale[chosen], rtol=1e-4, atol=1e-4 * max(1, np.abs(found).max()))
    assert losses[chosen] <= losses.min() + 1e-6


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


@pytest.mark.parametrize(("n", "d"), [(40, 8), (20, 50)])
def test_whitened_classes_have_the_shrunk_covariance_one(n: int, d: int) -> None:
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng(0)
    features, labels = blobs(n, d, 3, shared=5)
    features = features @ rng.normal(size=(d, d)).astype(np.float32)
    within = (features - means_of(features, labels, 3)[labels]).astype(np.float64)
    covariance = ledoit_wolf(within, assume_centered=True)[0]
    whitening = Whitening.of(features, labels)
    assert whitening.kernel.shape == (d, min(d, n - 1))
    of_whitened = whitening.kernel.T.astype(np.float64) @ covariance @ whitening.kernel
    np.testing.assert_allclose(of_whitened, np.eye(len(of_whitened)), atol=1e-5)
    np.testing.assert_allclose(whitening(features).mean(axis=0), 0, atol=1e-3)


def test_whitened_means_are_as_sure_as_held_out_images_allow() -> None:
    features, labels = blobs(120, 200, 2, spread=12.0)  # a plain leave-one-out would be sure of noise
    whitening, kernel, bias = whitened_prototypes(features[:40], labels[:40], 2, 1, normalize=True)
    logits = unit(whitening(features[40:])) @ kernel + bias
    assert -log_softmax(logits)[np.arange(80), labels[40:]].mean() < 0.8


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
    distances = without_own(rows, labels, 3, 1)
    s = SHARPNESS[mean_losses(distances, labels, 1).argmin()] / distances.mean()
    expected = log_softmax(-s * ((rows[:, None] - means_of(rows, labels, 3)) ** 2).sum(axis=2))
    np.testing.assert_allclose(log_softmax(rows.astype(np.float32) @ kernel + bias), expected, atol=0.05)


# Neighbours


def votes_by_hand(
    features: np.ndarray, labels: np.ndarray, classes: int, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Compute probabilities `(n, classes)` from votes of the `k` nearest by cosine, plus one vote for all classes."""
    found = []
    for cosines in long(queries, True) @ long(features, True).T:
        votes = np.full(classes, 1 / classes)
        for i in np.argsort(-cosines)[:k]:
            votes[labels[i]] += np.exp((cosines[i] - cosines.max()) / temperature)
        found.append(votes / votes.sum())
    return np.array(found)


def losses_by_hand(
    features: np.ndarray, labels: np.ndarray, classes: int, views: int, ks: Sequence[int], ts: Sequence[float]
) -> dict[tuple[int, float], float]:
    """Compute the leave-one-out log loss of every choice; an image's own views are never its neighbours."""
    image = np.arange(len(labels)) // views
    losses: dict[tuple[int, float], float] = {}
    for k in ks:
        for t in ts:
            own = []
            for i, label in enumerate(labels):
                others = image != image[i]
                [votes] = votes_by_hand(features[others], labels[others], classes, features[i : i + 1], k, t)
                own.append(votes[label])
            losses[k, t] = float(-np.log(own).mean())
    return losses


@few
@given(
    images=st.integers(2, 20),
    views=st.integers(1, 3),
    classes=st.integers(2, 3),
    k=st.none() | st.integers(1, 40),
    temperature=st.none() | st.sampled_from([0.3, 0.7]),
    seed=st.integers(0, 1000),
)
@example(images=20, views=3, classes=3, k=None, temperature=None, seed=0)
@example(images=6, views=1, classes=2, k=100, temperature=0.7, seed=0)
def test_k_and_temperature_are_given_or_chosen_as_by_hand(
    images: int, views: int, classes: int, k: int | None, temperature: float | None, seed: int
) -> None:
    features, labels = blobs(images, 5, classes, views, spread=1.5, seed=seed)
    others = len(labels) - views
    ks = [min(k, others)] if k else [n for n in NEIGHBOURS if n <= others]
    losses = losses_by_hand(features, labels, classes, views, ks, [temperature] if temperature else TEMPERATURES)
    found_k, found_temperature = choose_k(features, labels, classes, views, k, temperature)
    assert found_k == min(k, len(labels)) if k else found_k in ks
    assert losses[min(found_k, others), found_temperature] <= min(losses.values()) + 1e-5


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
