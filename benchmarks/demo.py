"""How hard the drawn demo is: colours alone, random features, ImageNet's features; a logistic regression each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.data.datamodule import DataModule
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.classification import classification_metrics
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

BINS = 8


def histograms(data: DataModule) -> np.ndarray:
    """Joint RGB histograms `(n, BINS^3)`, as shares."""
    rows = []
    for index in range(len(data)):
        cells = (data.pixels(index, 128) // (256 // BINS)).astype(int)
        codes = (cells[..., 0] * BINS + cells[..., 1]) * BINS + cells[..., 2]
        rows.append(np.bincount(codes.ravel(), minlength=BINS**3) / codes.size)
    return np.array(rows, np.float32)


def inputs(data: DataModule) -> Iterator[tuple[str, np.ndarray]]:
    """What each regression sees."""
    yield f"colour histograms, {BINS} x {BINS} x {BINS}", histograms(data)
    for name, weights in (("random weights", "null"), ("ImageNet weights", "imagenet")):
        network = compose([f"backbone.weights={weights}"]).backbone.build()
        table = FeatureTable(network, data, Features(), "auto", threads=2)
        yield f"EfficientNet-Lite0, {name}", table.get(np.arange(len(data)))


def main(arguments: list[str]) -> None:
    """Prints the table. Arguments are overrides, such as data.seed=1."""
    start_backend()
    data = compose(["data=hot_dog_demo", *arguments]).data.load()
    fitted, judged = data.indices("train", "val"), data.indices("test")
    print("| a logistic regression on | test accuracy | 95 % interval |\n|---|---|---|")
    for name, features in inputs(data):
        solution = solve(features[fitted], data.labels[fitted], LBFGS(), seed=0)
        scores = classification_metrics(features[judged] @ solution.kernel + solution.bias, data.labels[judged])
        low, high = scores["accuracy_low"], scores["accuracy_high"]
        print(f"| {name} | {scores['accuracy']:.3f} | {low:.3f} - {high:.3f} |")
