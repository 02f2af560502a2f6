"""Test that changed copies are found, by features that nominate and pixels that decide."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from tl_research.data.near_duplicates import SIDE, best_correlation, near_pairs, nominate
from tl_research.data.quality import join_pairs

Rng = np.random.Generator


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def picture(seed: int, size: tuple[int, int] = (200, 120)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


CHANGES = {
    "crop": lambda image: image.crop((10, 6, 190, 114)),
    "turn": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "half": lambda image: image.resize((100, 60)),
    "mirror": ImageOps.mirror,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_correlates_and_another_picture_does_not(change: object) -> None:
    copies = [best_correlation(grey(picture(n)), grey(change(picture(n))), 0.6) for n in range(5)]  # type: ignore[operator]
    others = [best_correlation(grey(picture(n)), grey(change(picture(n + 1))), 0.6) for n in range(5)]  # type: ignore[operator]
    assert min(copies) > 0.9 > 0.8 > max(others)


def test_a_cut_out_is_found_on_another_background() -> None:
    detail = np.random.default_rng(0).integers(60, 190, (16, 16)).astype(np.uint8)
    cards = []
    for background in (20, 250):
        card = np.full((SIDE, SIDE), background, np.uint8)
        card[8:24, 8:24] = detail
        cards.append(card)
    assert best_correlation(*cards) > 0.85
    assert best_correlation(cards[0], cards[1][:, ::-1].copy()) > 0.85
    flat = np.full((SIDE, SIDE), 90, np.uint8)
    assert best_correlation(flat, flat) == 0


def test_blocks_nominate_what_all_products_would(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.abs(np.random.default_rng(0).normal(size=(300, 160))).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(300)
    monkeypatch.setattr("tl_research.data.near_duplicates.BLOCK_NUMBERS", 30_000)
    for rows, neighbours, values in nominate(features):
        best = np.sort(cosines[rows], axis=1)[:, ::-1][:, :3]
        assert np.mean(np.abs(best[:, 0] - values[:, 0]) < 1e-5) > 0.5  # components may miss some of equal noise
        assert np.allclose(cosines[rows[:, None], neighbours], values, atol=1e-5)


@pytest.mark.parametrize(("cosine", "is_found"), [(0.9, True), (0.64, False)])
def test_features_and_pixels_must_agree_together(cosine: float, is_found: bool) -> None:
    features = np.eye(8, dtype=np.float32)
    features[7] = cosine * features[0] + np.sqrt(1 - cosine**2) * features[7]
    turned = CHANGES["turn"](picture(0))
    greys = np.stack([*(grey(picture(n)) for n in range(7)), grey(turned)])
    assert 0.95 < best_correlation(greys[0], greys[7], 0.6) < 1
    found = [(pair.first, pair.second) for pair in near_pairs(features, greys, np.full(8, 0.6))]
    assert found == ([(0, 7)] if is_found else [])


def test_pairs_are_found_once_and_make_groups() -> None:
    pictures = [grey(picture(n)) for n in range(6)]
    features = np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 0, 1]]
    greys = np.stack([*pictures, pictures[0][:, ::-1], pictures[2]])
    found = near_pairs(features, greys, np.full(8, 0.6))
    assert [(pair.first, pair.second) for pair in found] == [(0, 6)]  # 7 has the features of 1 and the pixels of 2
    groups = join_pairs(8, [(0, 6), (6, 3)])
    assert groups[0] == groups[3] == groups[6]
    assert len(set(groups.tolist())) == 6


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_have_few_neighbours(count: int) -> None:
    assert near_pairs(np.ones((count, 4), np.float32), np.zeros((count, SIDE, SIDE), np.uint8), np.ones(count)) == []
