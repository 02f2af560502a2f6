"""The tables of a data set: classes, image sizes, files that are left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.system.console import make_table, show, show_table

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

log = logging.getLogger(__name__)

MOST_CLASSES = 20
MOST_FILES = 5


def show_data(module: DataModule) -> None:
    """Show class counts per split, the distribution of image sizes, the files that were set aside or
    ignored, and what the folder was taken for."""
    show(*module.notes, *module.found.notes())
    for warning in (*module.warnings, *module.found.warnings()):
        log.warning("%s: %s", module.root, warning)
    counts = module.counts()
    table = make_table(f"{len(module)} images in {module.root}", "class", *counts)
    for name in module.class_names[:MOST_CLASSES]:
        table.add_row(name, *(str(counts[split][name]) for split in counts))
    if len(module.class_names) > MOST_CLASSES:
        table.add_row(f"... {len(module.class_names) - MOST_CLASSES} more", *([""] * len(counts)))
    table.add_row("all", *(str(sum(counts[split].values())) for split in counts), style="bold")
    show_table(table)
    sizes = make_table("sizes in pixels", "", "smallest", "quarter", "median", "three quarters", "largest")
    for side, values in (("width", module.sizes[:, 0]), ("height", module.sizes[:, 1])):
        sizes.add_row(side, *(f"{value:.0f}" for value in np.percentile(values, [0, 25, 50, 75, 100])))
    show_table(sizes)
    if module.values:
        deep, (bits, window) = sum(map(bool, module.values)), astuple(module.pixel_range)
        scaled = f"values from {window[0]:g} to {window[1]:g}" if window else f"integers of {bits} bits (data.bits)"
        show(f"{deep} with more than 8 bits a channel: {scaled} become 0 to 255")
    if module.quarantined:
        _show_files("set aside, cannot be read", [f"{bad.path}: {bad.reason}" for bad in module.quarantined])
    if module.ignored:
        _show_files("passed over, not an image in a class folder", [str(path) for path in module.ignored])


def describe_data(module: DataModule) -> dict[str, Any]:
    """Return what was found out about the data as plain values, for `data_check.json`."""
    low, middle, high = (np.percentile(module.sizes, share, axis=0).tolist() for share in (0, 50, 100))
    return module.found.as_dict() | {
        "images": module.counts(),
        "sizes": {"smallest": low, "median": middle, "largest": high},
        "set_aside": [{"path": str(bad.path), "reason": bad.reason} for bad in module.quarantined],
        "passed_over": [str(path) for path in module.ignored],
    }


def _show_files(what: str, lines: Sequence[str]) -> None:
    show(f"{len(lines)} {what}:")
    for line in lines[:MOST_FILES]:
        show(f"  {line}")
    if len(lines) > MOST_FILES:
        show(f"  ... and {len(lines) - MOST_FILES} more")
