"""How many features were computed, and what a store of features holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.system.console import make_table, show, show_table

if TYPE_CHECKING:
    from tl_research.features.store_admin import StoreEntry


def show_features(computed: int, hit: int, what: str = "features") -> None:
    """How many images had to pass through the backbone, or its frozen blocks."""
    show(f"{what}: {computed:,} computed, {hit:,} found")


def show_store(root: Any, found: Sequence[StoreEntry]) -> None:
    """What a store of features holds, a line for each frozen network."""
    columns = ("key", "backbone", "weights", "pixels", "engine", "rows", "MB", "last used")
    table = make_table(f"features in {root}", *columns)
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
    show_table(table)
