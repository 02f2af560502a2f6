"""Does `compare` find what is there, and nothing that is not? Heads solved on the demo's features.

python -m benchmarks compare [--pairs 100]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.paired import LEVEL, compare_answers
from tl_research.training.half_heads import answers_of_halves
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

PER_CLASS, APART, NEAR = 25, 0.05, 0.0051
FEWER = (2, 3, 4, 6)
"""Training images a class of heads that are worse."""
WHOLE, SMALL = 224, 80
"""Pixels of the images, and of those of a setting that is worse."""


@dataclass(frozen=True)
class Judged:
    """Which of the test images `(n,)` a head answers correctly, and how to have the same `(2 h, n)` of heads on halves
    of its training images."""

    correct: np.ndarray
    halves: Callable[[], np.ndarray]


class Heads:
    """Heads solved on some of the demo's training features."""

    def __init__(self) -> None:
        start_backend()
        data = compose(["data=hot_dog_demo", "data.num_test=1000"]).data.load()
        self.rng = np.random.default_rng(0)
        self._train, self._test = data.indices("train", "val"), data.indices("test")
        self._labels, self._features, self._l2 = data.labels, {}, {}
        for size in (WHOLE, SMALL):
            network = compose([f"backbone.image_size={size}"]).backbone.build()
            table = FeatureTable(network, data, Features(), "auto", threads=2)
            self._features[size] = table.get(np.arange(len(data)))
            some = self.choose(PER_CLASS)  # one penalty for all heads, by cross-validation
            self._l2[size] = solve(self._features[size][some], self._labels[some], LBFGS(), seed=0).l2
        self._spare: list[Judged] = []

    def choose(self, per_class: int) -> np.ndarray:
        """Choose training images at random, so many of each class."""
        labels = self._labels[self._train]
        classes = [self._train[labels == label] for label in np.unique(labels)]
        return np.concatenate([self.rng.choice(own, per_class, replace=False) for own in classes])

    def judge(self, some: np.ndarray, size: int = WHOLE) -> Judged:
        """Solve a head on these images."""
        features, labels, l2 = self._features[size], self._labels, self._l2[size]
        learned, tests, true = (features[some], labels[some]), features[self._test], labels[self._test]
        head = solve(*learned, LBFGS(l2=l2), seed=0)
        return Judged(head.logits(tests).argmax(axis=1) == true, lambda: answers_of_halves(*learned, tests, l2) == true)

    def alike(self) -> Iterator[tuple[Judged, Judged]]:
        """Yield pairs that saw different images, as many."""
        while True:
            pair = self.judge(self.choose(PER_CLASS)), self.judge(self.choose(PER_CLASS))
            self._spare += pair
            yield pair

    def fewer(self) -> Iterator[tuple[Judged, Judged]]:
        """Yield pairs, of heads that `alike` made and heads that saw fewer images, whose accuracies are `APART`."""
        while True:
            worse = self.judge(self.choose(int(self.rng.choice(FEWER))))
            gaps = [abs(better.correct.mean() - worse.correct.mean() - APART) for better in self._spare]
            if min(gaps) < NEAR:
                yield worse, self._spare.pop(int(np.argmin(gaps)))

    def smaller(self) -> Iterator[tuple[Judged, Judged]]:
        """Yield pairs that saw the same images, one of them `SMALL`, whose accuracies are `APART`."""
        while True:
            some = self.choose(PER_CLASS)
            worse, better = self.judge(some, SMALL), self.judge(some)
            if abs(better.correct.mean() - worse.correct.mean() - APART) < NEAR:
                yield worse, better


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args(arguments)
    heads = Heads()
    print(f"python -m benchmarks compare {' '.join(arguments)}\n")
    print("| pairs | accuracies | mean difference | test images | settings: a difference | models: a difference |")
    print("|---|---|---|---|---|---|")
    for name, pairs, together, sizes in (
        ("differ by the training images", heads.alike(), False, (200, 800)),
        (f"{APART} apart by fewer training images", heads.fewer(), False, (200,)),
        (f"{APART} apart by the images' size, same training images", heads.smaller(), True, (200, 400, 800)),
    ):
        found, means = np.zeros((len(sizes), 2), int), []
        for _, (first, second) in zip(range(options.pairs), pairs, strict=False):
            halves = [first.halves(), second.halves()]
            halves = [halves[1].astype(float) - halves[0]] if together else halves
            for row, size in zip(found, sizes, strict=True):
                shown = heads.rng.choice(len(first.correct), size, replace=False)
                right = first.correct[shown], second.correct[shown]
                compared = compare_answers(*right, halves=[part[:, shown] for part in halves])
                row += compared.headline_p < LEVEL, compared.p_value < LEVEL
            means.append((first.correct.mean(), second.correct.mean()))
        low, high = np.mean(means, axis=0)
        apart = np.mean([abs(b - a) for a, b in means])
        for size, (settings, models) in zip(sizes, found, strict=True):
            counts = f"{settings} of {options.pairs} | {models} of {options.pairs}"
            print(f"| {name} | {low:.3f}, {high:.3f} | {apart:.3f} | {size} | {counts} |", flush=True)
