"""Which candidate should `backbone=auto` take? Rules of choice, over draws of few training images.

    python -m benchmarks rules [--data stamps=FOLDER,demo,sauce] [--draws 12] [--cache DIR]

Candidates are EfficientNet-Lite 0, 1 and 2 alone and together, as `auto` looks at them. In each draw heads learn from a
few images of each class, and up to 400 of the others judge what each rule has chosen. "Cost" is multiply-accumulates,
the default's as 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import log_loss

from benchmarks.choose import images
from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.experiment.candidates import Candidate, judge
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.probabilities import softmax
from tl_research.models.blocks import multiply_accumulates
from tl_research.training.logistic_regression import Choice, solve
from tl_research.training.optimizer import LBFGS

PARTS = {"lite0@260": ("efficientnet_lite0", 260), "lite1@260": ("efficientnet_lite1", 260),
         "lite2": ("efficientnet_lite2", 260)}  # fmt: skip
NETWORKS = {"default": ("efficientnet_lite0", 224), **PARTS}
TOGETHER = tuple(PARTS)
CANDIDATES = [(name,) for name in NETWORKS] + [pair for size in (2, 3) for pair in combinations(PARTS, size)]
PER_CLASS, MOST_JUDGING = (5, 10, 25, 50), 400

RULES: dict[str, Callable[[dict[tuple[str, ...], Candidate]], str]] = {
    "the lowest loss": lambda each: min(each.values(), key=lambda one: one.loss).name,
    "the cheapest not worse beyond noise": lambda each: judge([*each.values()], None)[0].name,
    "all together": lambda each: each[TOGETHER].name,
    "`auto`: all together, unless ...": lambda each: judge([*each.values()], None, each[TOGETHER])[0].name,
}


def draws(
    features: dict[str, np.ndarray], labels: np.ndarray, per_class: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield for each draw, and rule, how accuracy, log loss and cost differ from the default's."""
    for number in range(count):
        rng = np.random.default_rng(1000 * per_class + number)
        classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        learned = np.concatenate([members[:per_class] for members in classes])
        judging = rng.permutation(np.setdiff1d(np.arange(len(labels)), learned))[:MOST_JUDGING]
        candidates, judged = {}, {}
        for names in CANDIDATES:
            rows = np.concatenate([features[name] for name in names], axis=1)
            widths = [features[name].shape[1] for name in names]
            head = solve(rows[learned], labels[learned], LBFGS(), seed=number, widths=widths)
            choice = Choice(head.l2, head.log_losses, head.cv_accuracy, image_losses=head.image_losses)
            cost = sum(COSTS[name] for name in names)
            candidates[names] = Candidate("+".join(names), choice, 0.0, 0, cost)
            logits = head.logits(rows[judging])
            accuracy = float(np.mean(logits.argmax(axis=1) == labels[judging]))
            loss = log_loss(labels[judging], softmax(logits), labels=np.unique(labels))
            judged["+".join(names)] = np.array([accuracy, loss, cost / COSTS["default"]])
        default = judged["default"] * (1, 1, 0)
        yield {rule: judged[choose(candidates)] - default for rule, choose in RULES.items()}


COSTS: dict[str, int] = {}


def main(arguments: list[str]) -> None:
    """Prints a table of means over data sets and sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rules")
    parser.add_argument("--data", default="demo,sauce")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args(arguments)
    start_backend()
    built = {
        key: compose([f"backbone={name}", f"backbone.image_size={size}"]).backbone.build(keep_session=True)
        for key, (name, size) in NETWORKS.items()
    }
    COSTS.update({key: sum(multiply_accumulates(network)) for key, network in built.items()})
    settings = []
    with tempfile.TemporaryDirectory() as temporary:
        store = Features(store=str((options.cache or Path(temporary)) / "features"))
        for name in options.data.split(","):
            data = compose(images(name)).data.load()
            tables = {key: FeatureTable(network, data, store, "auto", threads=2) for key, network in built.items()}
            features = {key: table.get(np.arange(len(data))) for key, table in tables.items()}
            for per_class in PER_CLASS:
                if 2 * per_class > np.bincount(data.labels).min():
                    continue
                found = list(draws(features, data.labels, per_class, options.draws))
                settings.append({rule: np.mean([each[rule] for each in found], axis=0) for rule in RULES})
                row = " | ".join(f"{settings[-1][rule][0]:+.3f}, {settings[-1][rule][1]:+.3f}" for rule in RULES)
                print(f"| {name.partition('=')[0]}, {per_class} a class | {row} |", flush=True)
    print("\n| rule | accuracy | log loss | cost |\n|---|---|---|---|")
    for rule in RULES:
        accuracy, loss, cost = np.mean([each[rule] for each in settings], axis=0)
        print(f"| {rule} | {accuracy:+.4f} | {loss:+.3f} | {cost:.1f} |")
