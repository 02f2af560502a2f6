"""The results of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tl_research.system.console import make_table, show, show_table


def show_done_before(metrics: Mapping[str, Any], directory: Any) -> None:
    """Show that a job was done before, and its accuracy."""
    scores = {name: metrics.get(f"{name}_accuracy") for name in ("val", "cv", "test")}
    known = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None and name != "cv"]
    if scores["val"] is None and scores["cv"] is not None:
        known.insert(0, f"cross-validated {scores['cv']:.3f}")
    show(f"done before: accuracy {', '.join(known)}", directory)


def show_metrics(metrics: Mapping[str, Any], directory: Any, epochs: int) -> None:
    """Show the metrics, each accuracy with its interval, the best epoch, and the run directory."""
    table = make_table("results", "", "accuracy", "95 % interval", "loss", "macro F1", "AUROC", "images")
    for split in ("val", "test"):
        if f"{split}_accuracy" not in metrics:
            continue
        scores = {key: metrics.get(f"{split}_{key}") for key in ("accuracy", "loss", "macro_f1", "auroc")}
        interval = f"{metrics[f'{split}_accuracy_low']:.3f} - {metrics[f'{split}_accuracy_high']:.3f}"
        cells = ["-" if value is None else f"{value:.3f}" for value in scores.values()]
        table.add_row(split, cells[0], interval, *cells[1:], str(metrics[f"num_{split}"]))
    if table.rows:
        show_table(table)
    if "val_accuracy" not in metrics and metrics.get("cv_accuracy") is not None:
        show(f"no validation images; cross-validated accuracy {metrics['cv_accuracy']:.3f}")
    if metrics.get("tested") is False:
        show("not tested: no images were held out for it")
    if epochs > 1 and "best_stage" in metrics:
        best = f"stage {metrics['best_stage']}, epoch {metrics['best_epoch']}"
        show(f"the best of {epochs} epochs was {best}, by validation")
    show(directory)
