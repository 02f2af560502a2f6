"""Bootstrap intervals of metrics."""

from __future__ import annotations

import numpy as np
import pytest

from tl_research.metrics.bootstrap import bootstrap_intervals
from tl_research.metrics.classification import classification_metrics


def draw(num: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    return (rng.normal(size=(num, classes)) + np.eye(classes)[labels]).round(
        1
    ), labels  # rounded: some scores are equal


METRICS = ("loss", "macro_f1", "balanced_accuracy", "auroc", "auprc")


@pytest.mark.parametrize("groups", [None, np.arange(80) // 4], ids=["images", "groups"])
def test_intervals_equal_those_of_direct_resampling(groups: np.ndarray | None) -> None:
    logits, labels = draw(80)
    rng, rows = np.random.default_rng(0), []
    number = np.arange(80) if groups is None else groups
    for _ in range(200):
        drawn = np.concatenate(
            [np.flatnonzero(number == unit) for unit in rng.integers(0, number.max() + 1, number.max() + 1)]
        )
        rows.append(classification_metrics(logits[drawn], labels[drawn], intervals=False))
    found = bootstrap_intervals(logits, labels, groups)
    for name in METRICS:
        low, high = np.quantile([row[name] for row in rows], [0.025, 0.975])
        width = high - low
        assert found[f"{name}_low"] == pytest.approx(low, abs=0.15 * width)
        assert found[f"{name}_high"] == pytest.approx(high, abs=0.15 * width)


def test_images_that_come_in_groups_give_wider_intervals() -> None:
    logits, labels = (values.repeat(10, axis=0) for values in draw(20))
    alone, grouped = (bootstrap_intervals(logits, labels, groups) for groups in (None, np.arange(200) // 10))
    for name in METRICS:
        widths = [found[f"{name}_high"] - found[f"{name}_low"] for found in (alone, grouped)]
        assert widths[1] > 2 * widths[0]


def test_intervals_surround_their_metric_whatever_the_number() -> None:
    for num in (1, 3, 40):
        logits, labels = draw(num)
        metrics = classification_metrics(logits, np.zeros_like(labels))
        assert "auroc_low" not in metrics
        assert metrics["loss_low"] - 1e-9 <= metrics["loss"] <= metrics["loss_high"] + 1e-9
    metrics = classification_metrics(*draw(400))
    assert all(metrics[f"{n}_low"] < metrics[n] < metrics[f"{n}_high"] for n in METRICS)


def test_equal_scores_count_half() -> None:
    found = bootstrap_intervals(np.zeros((40, 2)), np.arange(40) % 2)
    assert (found["auroc_low"], found["auroc_high"]) == (0.5, 0.5)


@pytest.mark.parametrize(("groups", "units"), [(None, 3), (np.array([0, 0, 1, 2, 2, 3, 4]), 2)])
def test_a_result_without_a_mistake_is_not_certain(groups: np.ndarray | None, units: int) -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    found = bootstrap_intervals(4.0 * np.eye(2)[labels], labels, groups)
    for name in METRICS[2:]:  # macro F1 counts a class that is not drawn as 0
        assert (found[f"{name}_low"], found[f"{name}_high"]) == (pytest.approx(0.05 ** (1 / units)), 1)
    found = bootstrap_intervals(4.0 * np.eye(2)[1 - labels], labels, groups)
    assert (found["auroc_low"], found["auroc_high"]) == (0, pytest.approx(1 - 0.05 ** (1 / units)))
