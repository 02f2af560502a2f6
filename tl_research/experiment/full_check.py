"""Check a data set in full: bring features and small images to the functions that find what is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tl_research.backend.start import start_backend
from tl_research.data.check_findings import CheckFindings, Growth, names_below
from tl_research.data.datamodule import DataModule
from tl_research.data.ignore_list import IgnoreList, read_ignore_list
from tl_research.data.image_facts import ImageFacts, measure_images
from tl_research.data.known_duplicates import leaking, remember_duplicates
from tl_research.data.label_doubts import LabelDoubt, rank_labels
from tl_research.data.near_duplicates import NearPair, near_pairs
from tl_research.data.shortcuts import describe_facts, find_shortcuts
from tl_research.data.sources import Source
from tl_research.errors import InputError
from tl_research.experiment.experiment import Experiment
from tl_research.features.table import FeatureTable
from tl_research.metrics.learning_curve import extrapolate
from tl_research.models.combined import Auto
from tl_research.reports.check_page import show_check, write_check
from tl_research.system.console import silenced
from tl_research.system.progress import bar
from tl_research.training.learning_curve import measure_curve, out_of_fold_probabilities
from tl_research.training.optimizer import LBFGS

log = logging.getLogger(__name__)

MORE = (50, 100, 200)
"""Images of each class whose worth is estimated."""

CHUNK = 4096


def check_experiment(experiment: Experiment) -> CheckFindings:
    """Check all images of an experiment's data. Trains nothing; features come from the store, or go there.

    Raises:
        InputError: the images or weights cannot be had, or no single backbone is chosen.
    """
    if isinstance(experiment.backbone, Auto):
        raise InputError("backbone=auto: a check needs one backbone, such as backbone=efficientnet_lite0")
    began = time.time()
    with silenced(not experiment.verbose):
        experiment.preflight()
        data = load_everything(experiment.data, experiment)
        threads = start_backend(experiment.threads, experiment.deterministic)
        findings = check_images(experiment, experiment.feature_table(experiment.start.build(), data, threads))
        experiment.features.prune(since=began)
    return findings


def check_run(experiment: Experiment, table: FeatureTable, folder: Path) -> None:
    """Check the images of a run before it trains, by the table of its features; write what is found to `folder`."""
    findings = check_images(experiment, replace(table, data=load_everything(experiment.data, experiment)))
    write_check(findings, folder, pictures=experiment.report.thumbnails)
    show_check(findings, folder)


def without_leaks(logits: np.ndarray, data: DataModule, folder: Path | None) -> dict[str, float | int]:
    """Return the accuracy on the test images, whose logits are `(n, k)`, without those that a check has found to have a
    duplicate among the others; nothing, and no warning, if there are none."""
    spoilt = leaking(folder, data)
    if not spoilt.any():
        return {}
    count = int(spoilt.sum())
    log.warning("%d of %d test images have a duplicate among the others, by the last check", count, len(spoilt))
    metrics: dict[str, float | int] = {"num_test_leaks": count}
    if not spoilt.all():
        right = logits.argmax(axis=1) == data.labels[data.indices("test")]
        metrics["test_accuracy_without_leaks"] = float(right[~spoilt].mean())
    return metrics


def load_everything(source: Source, experiment: Experiment) -> DataModule:
    """Load a source with all its images, and with the faults that a run would not accept."""
    whole = replace(source, fraction=1.0, per_class=None, allow_leaks=True, max_bad=0.999)
    return whole.load(experiment.features.file_index())


def check_images(experiment: Experiment, table: FeatureTable) -> CheckFindings:
    """Check the images of a table, which `load_everything` has loaded; remember near duplicates for later runs."""
    data, seed = table.data, experiment.seed
    ignored = _ignored(experiment.data.ignore, data)
    facts = measure_images(data.paths, data.pixel_range)
    features = _all_features(table)
    near = _near(features, facts, data, ignored)
    findings = CheckFindings(data, facts, near, [], [], None)
    groups = np.arange(len(data))
    for members in findings.groups:
        groups[members] = members[0]
    probabilities = out_of_fold_probabilities(features, data.labels, LBFGS(), seed, groups)
    one_of_each = np.unique(groups)  # a picture and its copies would be several witnesses of one fact
    columns = describe_facts(facts, data.paths)
    digests = [digest.hex() for digest in data.digests]
    folder = experiment.features.root
    remember_duplicates(folder, data.dataset, ([digests[i] for i in members] for members in findings.groups))
    return replace(
        findings,
        doubts=_without_right(rank_labels(probabilities, data.labels), findings, ignored),
        shortcuts=find_shortcuts({k: v[one_of_each] for k, v in columns.items()}, data.labels[one_of_each], seed),
        growth=_growth(features, data.labels, groups, seed),
    )


def _ignored(table: str | None, data: DataModule) -> IgnoreList:
    return read_ignore_list(Path(table).expanduser(), frozenset(names_below(data))) if table else IgnoreList()


def _all_features(table: FeatureTable) -> np.ndarray:
    """Return the features of all images, float32 `(n, d)`."""
    everything = np.arange(len(table.data))
    table.load(everything)
    features = np.empty((len(everything), int(np.prod(table.row.shape))), np.float32)
    for start in range(0, len(everything), CHUNK):
        part = everything[start : start + CHUNK]
        features[part] = table.get_batch(part).reshape(len(part), -1)
    return features


def _near(features: np.ndarray, facts: ImageFacts, data: DataModule, ignored: IgnoreList) -> list[NearPair]:
    """Find near duplicates among images of which none are equal: equal ones would be each other's nearest."""
    copies = {other for each in data.found.equal for other in each.members[1:]}
    kept = np.array([i for i in range(len(data)) if i not in copies])
    with bar() as progress:
        task = progress.add_task("comparing images", total=len(kept))
        aspects = facts.heights[kept] / np.maximum(facts.widths[kept], 1)
        found = near_pairs(
            features[kept], facts.greys[kept], np.maximum(aspects, 1e-3), lambda n: progress.advance(task, n)
        )
    names = names_below(data)
    pairs = [replace(pair, first=int(kept[pair.first]), second=int(kept[pair.second])) for pair in found]
    return [pair for pair in pairs if frozenset((names[pair.first], names[pair.second])) not in ignored.pairs]


def _without_right(doubts: Sequence[LabelDoubt], findings: CheckFindings, ignored: IgnoreList) -> list[LabelDoubt]:
    return [doubt for doubt in doubts if findings.names[doubt.index] not in ignored.labels]


def _growth(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Growth | None:
    curve = measure_curve(features, labels, seed, groups)
    if curve is None:
        return None
    sizes, correct = curve
    present = len(labels) / len(np.unique(labels))
    expected = extrapolate(sizes, correct, np.array([present + more for more in MORE]), seed)
    return Growth(
        dict(zip(map(int, sizes), map(float, correct.mean(axis=0)), strict=True)),
        {more: (each.accuracy, each.low, each.high) for more, each in zip(MORE, expected, strict=True)},
    )
