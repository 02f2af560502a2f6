"""What a run shows a person before and after it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from tl_research.models.blocks import find_blocks as find_blocks
from tl_research.models.blocks import multiply_accumulates

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule
    from tl_research.features.store_admin import StoreEntry
    from tl_research.models.classifier import TrainableRow

log = logging.getLogger(__name__)
out = Console(highlight=False, soft_wrap=True)
if not (out.is_terminal or out.is_jupyter):
    out.width = 160  # a file has room for whole names
MOST_CLASSES = 20
MOST_FILES = 5
MOST_COLUMNS = 1000

ONLY_IN_FILES = ("parameters", "trainable", "features_computed")
LEAST_WANTED = ("seconds", "test_interval", "val_interval", "against_best")
"""Columns of a leaderboard that a narrow terminal can do without, the first of them first."""


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def data(module: DataModule) -> None:
    """Class counts per split, the distribution of image sizes, and which files were set aside or passed over."""
    counts = module.counts()
    table = _table(f"{len(module)} images in {module.root}", "class", *counts)
    for name in module.class_names[:MOST_CLASSES]:
        table.add_row(name, *(str(counts[split][name]) for split in counts))
    if len(module.class_names) > MOST_CLASSES:
        table.add_row(f"... {len(module.class_names) - MOST_CLASSES} more", *([""] * len(counts)))
    table.add_row("all", *(str(sum(counts[split].values())) for split in counts), style="bold")
    out.print(table)
    sizes = _table("sizes in pixels", "", "smallest", "quarter", "median", "three quarters", "largest")
    for side, values in (("width", module.sizes[:, 0]), ("height", module.sizes[:, 1])):
        sizes.add_row(side, *(f"{value:.0f}" for value in np.percentile(values, [0, 25, 50, 75, 100])))
    out.print(sizes)
    if module.quarantined:
        _files("set aside, cannot be read", [f"{bad.path}: {bad.reason}" for bad in module.quarantined])
    if module.ignored:
        _files("passed over, not an image in a class folder", [str(path) for path in module.ignored])


def _files(what: str, lines: Sequence[str]) -> None:
    out.print(f"{len(lines)} {what}:", markup=False)
    for line in lines[:MOST_FILES]:
        out.print(f"  {line}", markup=False)
    if len(lines) > MOST_FILES:
        out.print(f"  ... and {len(lines) - MOST_FILES} more")


def model(name: str, backbone: keras.Model, head: keras.Model | None) -> None:
    """The model's summary: one line a part; Keras' own, of every layer, is `model.summary()`."""
    table = _table("model", "part", "in", "out", "layers", "parameters")
    for part, network in ((f"backbone {name}", backbone), ("head", head)):
        if network is not None:
            shape = [" x ".join(map(str, s[1:])) for s in (network.input_shape, network.output_shape)]
            table.add_row(part, *shape, str(len(network.layers)), f"{network.count_params():,}")
        else:
            table.add_row(part, "", "", "", "made from features")
    out.print(table)


def blocks(name: str, backbone: keras.Model, command: str) -> None:
    """A backbone's blocks as `unfreeze` counts them, from the top: what share of it each is, and what share learns and
    is computed when it is unfrozen with those above it. Then `command` with that option."""
    parts, macs = find_blocks(backbone)[::-1], multiply_accumulates(backbone)[::-1]
    parameters = [part.num_parameters for part in parts]
    shares = [np.array(values) * 100 / max(sum(values), 1) for values in (parameters, macs)]
    title = f"{name}: {sum(parameters):,} parameters, {sum(macs) / 1e9:.3g} billion multiply-accumulates an image"
    columns = ("unfreeze", "block that ends with", "output", "layers", "parameters", "share", "compute")
    table = _table(title, *columns, "learning", "its compute")
    for number, part in enumerate(parts):
        cells = [f"{of[number]:.1f} %" for of in (*shares, *map(np.cumsum, shares))]
        output = " x ".join(map(str, part.output_shape))
        table.add_row(str(number + 1), part.name, output, str(len(part.layers)), f"{part.num_parameters:,}", *cells)
    out.print(table)
    number = min(2, len(parts))
    out.print(f"so many learn with: {command} transfer=finetune transfer.backbone.unfreeze={number}", markup=False)


def features(computed: int, hit: int, what: str = "features") -> None:
    """How many images had to pass through the backbone, or its frozen blocks."""
    out.print(f"{what}: {computed:,} computed, {hit:,} found", markup=False)


def stocks(root: Any, found: Sequence[StoreEntry]) -> None:
    """What a store of features holds, a line for each frozen network."""
    columns = ("key", "backbone", "weights", "pixels", "engine", "rows", "MB", "last used")
    table = _table(f"features in {root}", *columns)
    for stock in found:
        note, about = stock.about.get("note", {}), stock.about.get("about", {})
        table.add_row(
            stock.folder.name[:12],
            str(note.get("backbone", "?")),
            Path(str(note.get("weights", "?"))).name,
            str(about.get("image_size", "?")),
            str(about.get("engine", "?")),
            f"{stock.num_rows:,}",
            f"{stock.num_bytes / 1e6:,.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(stock.last_used)),
        )
    out.print(table)


def stage(name: str, rows: Sequence[TrainableRow], how: str, rate: float | None = None) -> None:
    """What will move in the fit that comes next, block by block; `rate` is the stage's learning rate, if it has one."""
    table = _table(f"stage {name}: {how}", "block", "parameters", "trainable", "batch norm", "learning rate")
    for row in rows:
        own = f"{rate * row.rate:.3g}" if rate and row.rate else "-"
        table.add_row(row.name, f"{row.parameters:,}", f"{row.trainable:,}", row.batch_norm, own)
    total, trainable = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    table.add_row("all", f"{total:,}", f"{trainable:,}", "", "", style="bold")
    out.print(table)


def learning_rate(stage: str, rate: float, why: str, command: str, folder: Any) -> None:
    """What a range test came to, the command to use, and where the curve is."""
    out.print(f"stage {stage}: learning rate {rate:.2g}; {why}", markup=False)
    out.print(command, markup=False)
    for name in ("lr_find.png", "lr_find.csv", "override.txt"):
        out.print(f"{folder}/{name}", markup=False)


def leaderboard(
    monitor: str, header: Sequence[str], lines: Sequence[Sequence[str]], failures: Sequence[str], folder: Any
) -> None:
    """Configurations, the best first; then what failed, and where the files lie. A terminal too narrow for all columns
    gets fewer."""
    for count in range(len(LEAST_WANTED) + 1):
        hidden = {*ONLY_IN_FILES, *LEAST_WANTED[:count]}
        shown = [i for i, column in enumerate(header) if column not in hidden]
        table = _table(f"leaderboard by {monitor}", *(header[i] for i in shown))
        for line in lines:
            table.add_row(*(escape(line[i]) for i in shown))
        width = Measurement.get(out, out.options.update(max_width=MOST_COLUMNS), table).maximum
        if not out.is_terminal:
            out.width = max(out.width, width)
        if width <= out.width:
            break
    out.print(table)
    for failure in failures:
        out.print(failure, markup=False)
    out.print(f"{folder}", markup=False)


def report(path: Any) -> None:
    """Where the page is."""
    out.print(f"report: {path}", markup=False)


def done_before(metrics: Mapping[str, Any], directory: Any) -> None:
    """That a job need not run again."""
    out.print(f"done before: val accuracy {metrics['val_accuracy']:.3f}, test {metrics['test_accuracy']:.3f}")
    out.print(f"{directory}", markup=False)


def results(metrics: Mapping[str, Any], directory: Any, epochs: int) -> None:
    """The numbers, each accuracy with its interval, which of the epochs they are of, and where everything lies."""
    table = _table("results", "", "accuracy", "95 % interval", "loss", "macro F1", "AUROC", "images")
    for split in ("val", "test"):
        found = {key: metrics.get(f"{split}_{key}") for key in ("accuracy", "loss", "macro_f1", "auroc")}
        interval = f"{metrics[f'{split}_accuracy_low']:.3f} - {metrics[f'{split}_accuracy_high']:.3f}"
        cells = ["-" if value is None else f"{value:.3f}" for value in found.values()]
        table.add_row(split, cells[0], interval, *cells[1:], str(metrics[f"num_{split}"]))
    out.print(table)
    if epochs > 1 and "best_stage" in metrics:
        best = f"stage {metrics['best_stage']}, epoch {metrics['best_epoch']}"
        out.print(f"the best of {epochs} epochs was {best}, by validation", markup=False)
    out.print(f"{directory}", markup=False)
