"""The counts of computed features, and the contents of a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.system.console import make_table, show, show_table

if TYPE_CHECKING:
    from tl_research.features.store_admin import StoreEntry


def show_features(computed: int, hit: int, what: str = "features") -> None:
    """Show how many features were computed, and how many were in the store."""
    show(f"{what}: {computed:,} computed, {hit:,} found")


def show_store(root: Any, entries: Sequence[StoreEntry]) -> None:
    """Show the contents of a store, one line for each frozen network."""
    columns = ("key", "backbone", "weights", "pixels", "engine", "rows", "MB", "last used")
    table = make_table(f"features in {root}", *columns)
    for entry in entries:
        note, about = entry.about.get("note", {}), entry.about.get("about", {})
        table.add_row(
            entry.folder.name[:12],
            str(note.get("backbone", "?")),
            Path(str(note.get("weights", "?"))).name,
            str(about.get("image_size", "?")),
            str(about.get("engine", "?")),
            f"{entry.num_rows:,}",
            f"{entry.num_bytes / 1e6:,.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        )
    show_table(table)
