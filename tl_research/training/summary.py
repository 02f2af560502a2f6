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


def show_fold(number: int, count: int, rate: float) -> None:
    """Say that fine-tuning has run in a fold, at learning rates times `rate`."""
    show_progress(f"fold {number} of {count}, learning rates x {rate:g}")


def show_fold_choice(
    rate: float, epochs: int, alpha: float, scores: Mapping[str, float], frozen: Mapping[str, float], folds: int
) -> None:
    """Show what the folds chose, and its mean scores beside those of the frozen head."""
    table = make_table(f"fine-tuning in {folds} folds", "chosen", "loss", "accuracy")
    name = f"{epochs} epoch(s), learning rates x {rate:g}" + (f", {alpha:g} of the way" if alpha < 1 else "")
    for each, values in {"frozen head": frozen, **({name: scores} if epochs else {})}.items():
        table.add_row(each, *(f"{values[key]:.4f}" for key in ("loss", "accuracy")))
    show_table(table)
    if not epochs:
        show("fine-tuning is not better in the folds: the head stays on the frozen backbone")


def show_members(members: Sequence[str]) -> None:
    """Say whether the frozen classifier, the tuned one or both answer."""
    what = (
        f"the {members[0]} classifier answers" if len(members) == 1 else "the mean of the frozen and the tuned answers"
    )
    show(f"out of fold: {what}")


def show_learning_rate(stage: str, rate: float, why: str, command: str, folder: Any) -> None:
    """Show the suggested rate, the command that uses it, and the files with the curve."""
    show(f"stage {stage}: learning rate {rate:.2g}; {why}")
    show(command)
    for name in ("lr_find.png", "lr_find.csv", "override.txt"):
        show(f"{folder}/{name}")
