"""Does `compare` find differences that are there, and none that are not? Heads solved on the demo's features.

python -m benchmarks compare [--pairs 100]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.paired import LEVEL, compare_answers
from tl_research.training.logistic_regression import Solution, solve
from tl_research.training.optimizer import LBFGS

PER_CLASS, TESTED, APART, NEAR = 25, 200, 0.05, 0.0051
FEWER = (2, 3, 4, 6)
"""Training images a class of heads that are worse."""


class Heads:
    """Heads solved on some of the demo's training features, and which of many other images they answer correctly."""

    def __init__(self) -> None:
        start_backend()
        data = compose(["data=hot_dog_demo", "data.num_test=1000"]).data.load()
        network = compose([]).backbone.build()
        features = FeatureTable(network, data, Features(), "auto", threads=2).get(np.arange(len(data)))
        self.rng = np.random.default_rng(0)
        train, test = data.indices("train", "val"), data.indices("test")
        self._features, self._labels = features[train], data.labels[train]
        self._tests, self._true = features[test], data.labels[test]
        self._options = LBFGS()
        self._options = LBFGS(l2=self._solve(PER_CLASS).l2)  # by cross-validation once, for all heads
        self._spare: list[np.ndarray] = []

    def _solve(self, per_class: int) -> Solution:
        classes = [np.flatnonzero(self._labels == label) for label in np.unique(self._labels)]
        some = np.concatenate([self.rng.choice(own, per_class, replace=False) for own in classes])
        return solve(self._features[some], self._labels[some], self._options, seed=0)

    def correct(self, per_class: int) -> np.ndarray:
        """Solve a head on `per_class` random images of each class; return which images `(n,)` it answers correctly."""
        correct: np.ndarray = self._solve(per_class).logits(self._tests).argmax(axis=1) == self._true
        return correct

    def alike(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs that saw different images, as many."""
        while True:
            pair = self.correct(PER_CLASS), self.correct(PER_CLASS)
            self._spare += pair
            yield pair

    def apart(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs, of heads that `alike` made and worse ones, whose accuracies on all images are `APART`, within
        `NEAR`."""
        while True:
            worse = self.correct(int(self.rng.choice(FEWER)))
            gaps = [abs(better.mean() - worse.mean() - APART) for better in self._spare]
            if min(gaps) < NEAR:
                yield worse, self._spare.pop(int(np.argmin(gaps)))


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args(arguments)
    heads = Heads()
    print(f"python -m benchmarks compare {' '.join(arguments)}\n")
    print("| pairs | accuracies | mean difference | `compare` finds a difference |\n|---|---|---|---|")
    for name, pairs in (("differ by the training images", heads.alike()), (f"{APART} apart", heads.apart())):
        found, means = 0, []
        for _, (first, second) in zip(range(options.pairs), pairs, strict=False):
            shown = heads.rng.choice(len(first), TESTED, replace=False)
            found += compare_answers(first[shown], second[shown]).p_value < LEVEL
            means.append((first.mean(), second.mean()))
        low, high = np.mean(means, axis=0)
        apart = np.mean([abs(b - a) for a, b in means])
        print(f"| {name} | {low:.3f}, {high:.3f} | {apart:.3f} | {found} of {options.pairs} |", flush=True)
