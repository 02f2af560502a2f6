"""The results of a run, and warnings of what they do not show."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.metrics.classification import recalls
from tl_research.system.console import make_table, show, show_table

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule
    from tl_research.experiment.candidates import CandidateRow

log = logging.getLogger(__name__)

FEWEST_IMAGES = 5  # of a class for validation: below, one image is more than a fifth of its recall
MOST_CLASSES = 20


def show_done_before(metrics: Mapping[str, Any], directory: Any) -> None:
    """Show that a job was done before, and its accuracy."""
    scores = {name: metrics.get(f"{name}_accuracy") for name in ("val", "cv", "test")}
    known = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None and name != "cv"]
    if scores["val"] is None and scores["cv"] is not None:
        known.insert(0, f"cross-validated {scores['cv']:.3f}")
    show(f"done before: accuracy {', '.join(known)}", directory)


def show_metrics(
    metrics: Mapping[str, Any], directory: Any, epochs: int, data: DataModule, logits: Mapping[str, np.ndarray]
) -> None:
    """Show the metrics, each accuracy with its interval and that of always answering the commonest class, the recall of
    each class by the `logits` of both splits, the best epoch, and the run directory."""
    table = make_table("results", "", "accuracy", "95 % interval", "majority", "loss", "macro F1", "AUROC", "images")
    for split in ("val", "test"):
        if f"{split}_accuracy" not in metrics:
            continue
        scores = {key: metrics.get(f"{split}_{key}") for key in ("accuracy", "majority", "loss", "macro_f1", "auroc")}
        interval = f"{metrics[f'{split}_accuracy_low']:.3f} - {metrics[f'{split}_accuracy_high']:.3f}"
        cells = ["-" if value is None else f"{value:.3f}" for value in scores.values()]
        table.add_row(split, cells[0], interval, *cells[1:], str(metrics[f"num_{split}"]))
    if table.rows:
        show_table(table)
    if "val_accuracy" not in metrics and metrics.get("cv_accuracy") is not None:
        show(f"no validation images; cross-validated accuracy {metrics['cv_accuracy']:.3f}")
    if metrics.get("tested") is False:
        show("not tested: no images were held out for it")
    judged = {split: values for split, values in logits.items() if len(values)}
    if judged:
        _show_recalls(data, judged)
    if epochs > 1 and "best_stage" in metrics:
        best = f"stage {metrics['best_stage']}, epoch {metrics['best_epoch']}"
        show(f"the best of {epochs} epochs was {best}, by validation")
    show(directory)


def _show_recalls(data: DataModule, logits: Mapping[str, np.ndarray]) -> None:
    """Show the share of right answers in each class, the lowest on the last split, the test images, first."""
    labels = {split: data.labels[data.indices(split)] for split in logits}
    shares = {split: recalls(values, labels[split]) for split, values in logits.items()}
    table = make_table("recall", "class", *(text for split in logits for text in (split, f"{split} images")))
    for index in np.argsort(shares[list(shares)[-1]], kind="stable")[:MOST_CLASSES]:
        pairs = [(f"{shares[s][index]:.3f}".replace("nan", "-"), str(np.sum(labels[s] == index))) for s in logits]
        table.add_row(data.class_names[index], *(cell for pair in pairs for cell in pair))
    if len(data.class_names) > MOST_CLASSES:
        table.add_row(f"... {len(data.class_names) - MOST_CLASSES} more, all higher on test")
    show_table(table)


def show_small_classes(data: DataModule) -> None:
    """Name classes with too few validation images to judge them by."""
    counts = {name: count for name, count in data.counts()["val"].items() if count < FEWEST_IMAGES}
    if counts and len(data.indices("val")):
        named = [f"{name} ({count})" for name, count in counts.items()]
        more = f" and {len(named) - MOST_CLASSES} more" if len(named) > MOST_CLASSES else ""
        which = ", ".join(named[:MOST_CLASSES]) + more
        show(f"fewer than {FEWEST_IMAGES} validation images of a class: {which}; its recall says little")


def warn_of_the_majority(metrics: Mapping[str, Any]) -> None:
    """Warn if an accuracy is not clearly above that of always answering the commonest class."""
    judged = [split for split in ("val", "test") if f"{split}_accuracy" in metrics]
    poor = [split for split in judged if metrics[f"{split}_accuracy_low"] <= metrics[f"{split}_majority"]]
    if poor:
        values = ", ".join(f"{s} {metrics[f'{s}_accuracy']:.3f} ({metrics[f'{s}_majority']:.3f})" for s in poor)
        log.warning("accuracy is not clearly above that of always answering the commonest class: %s", values)


def show_choice(rows: Sequence[CandidateRow], why: str, what: str) -> None:
    """Show the candidates of an automatic choice (`what`: backbone or head) from the lowest loss, and why one was
    chosen."""
    columns = (
        what,
        "log loss",
        "95 % interval",
        "above the best",
        "accuracy",
        "seconds",
        "parameters",
        "MACs",
        "",
    )
    table = make_table("candidates, cross-validated on training and validation images", *columns)
    for row in rows:
        loss = "-" if row.loss is None else f"{row.loss:.3f}"
        interval = "-" if row.low is None else f"{row.low:.3f} - {row.high:.3f}"
        behind = f"{row.behind:.3f} ({row.behind_low:.3f} to {row.behind_high:.3f})" if row.behind else ""
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.3f}"
        size, unit = (row.operations / 1e9, "G") if row.operations > 1e7 else (row.operations / 1e3, "k")
        numbers = f"{row.seconds:.1f}", f"{row.parameters:,}", f"{size:.2f} {unit}"
        table.add_row(row.name, loss, interval, behind, accuracy, *numbers, row.note)
    show_table(table)
    show(why)
