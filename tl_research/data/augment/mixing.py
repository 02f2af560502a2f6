"""Mix the images of a training batch by MixUp or CutMix, and their targets by the same shares."""

from __future__ import annotations

import numpy as np

Mixed = tuple[np.ndarray, np.ndarray]
"""Pixels uint8 `(b, s, s, 3)` and targets float32 `(b, k)`, whose rows sum to 1."""


def mix_batch(
    pixels: np.ndarray, targets: np.ndarray, rng: np.random.Generator, *, mixup: float, cutmix: float
) -> Mixed:
    """Mix a batch by the method whose alpha is above 0, or by one of both at random. As in both papers, every image
    gets a partner from the batch, and one share is drawn from Beta(alpha, alpha) for all."""
    by_boxes = rng.random() < 0.5 if mixup and cutmix else bool(cutmix)
    share = rng.beta(*2 * (cutmix if by_boxes else mixup,))
    partners = rng.permutation(len(pixels))
    return (_cut if by_boxes else _blend)(pixels, targets, share, partners, rng)


def _blend(
    pixels: np.ndarray, targets: np.ndarray, share: float, partners: np.ndarray, _: np.random.Generator
) -> Mixed:
    """Average each image with its partner, weighted (Zhang et al. 2018, arXiv 1710.09412)."""
    weight = round(256 * share)  # integers take a quarter of the time
    own = np.multiply(pixels, weight, dtype=np.uint16)
    own += np.multiply(pixels[partners], 256 - weight, dtype=np.uint16)
    own += 128
    own >>= 8
    return own.astype(np.uint8), _shared(targets, weight / 256, partners)


def _cut(
    pixels: np.ndarray, targets: np.ndarray, share: float, partners: np.ndarray, rng: np.random.Generator
) -> Mixed:
    """Paste one box from each image's partner, the same for all. It is centred anywhere and clipped at the edges, and
    the share is what remains (Yun et al. 2019, arXiv 1905.04899)."""
    height, width = pixels.shape[1:3]
    half = np.sqrt(1 - share) / 2
    y, x = rng.random(2)
    top, bottom = (round(height * float(np.clip(y + side, 0, 1))) for side in (-half, half))
    left, right = (round(width * float(np.clip(x + side, 0, 1))) for side in (-half, half))
    mixed = pixels.copy()
    mixed[:, top:bottom, left:right] = pixels[partners, top:bottom, left:right]
    return mixed, _shared(targets, 1 - (bottom - top) * (right - left) / (height * width), partners)


def _shared(targets: np.ndarray, share: float, partners: np.ndarray) -> np.ndarray:
    return (share * targets + (1 - share) * targets[partners]).astype(np.float32)
