"""The table of a stage, and the result of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_research.system.console import make_table, show, show_progress, show_table

if TYPE_CHECKING:
    from tl_research.models.classifier import TrainableRow


def show_stage(name: str, rows: Sequence[TrainableRow], how: str, rate: float | None = None) -> None:
    """Show the trainable parameters of a stage, block by block; `rate` is its learning rate, if it has one."""
    table = make_table(f"stage {name}: {how}", "block", "parameters", "trainable", "batch norm", "learning rate")
    for row in rows:
        own = f"{rate * row.rate:.3g}" if rate and row.rate else "-"
        table.add_row(row.name, f"{row.parameters:,}", f"{row.trainable:,}", row.batch_norm, own)
    total, trainable = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    table.add_row("all", f"{total:,}", f"{trainable:,}", "", "", style="bold")
    show_table(table)


def show_epoch(row: Mapping[str, Any]) -> None:
    """Write a line about an epoch where no progress bar is seen, and to the log file."""
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
    scores = [f"{name.replace('_', ' ')} {row[name]:.4g}" for name in names if name in row]
    show_progress(f"epoch {row['epoch']}, stage {row['stage']}: {', '.join(scores)}")


def show_learning_rate(stage: str, rate: float, why: str, command: str, folder: Any) -> None:
    """Show the suggested rate, the command that uses it, and the files with the curve."""
    show(f"stage {stage}: learning rate {rate:.2g}; {why}")
    show(command)
    for name in ("lr_find.png", "lr_find.csv", "override.txt"):
        show(f"{folder}/{name}")
