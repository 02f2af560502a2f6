"""`features list`, `features verify`, `features prune`: the store of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_research.commands.arguments import PASS_ON
from tl_research.errors import InputError
from tl_research.system.console import show

features_app = typer.Typer(no_args_is_help=True, help="Look after the store of features: list, verify, prune.")


def _root(overrides: list[str]) -> Path:
    from tl_research import compose

    root = compose(overrides).features.root
    if root is None:
        raise InputError("features.store=null: there is no store to look at; give a folder")
    return root


@features_app.command("list", context_settings=PASS_ON)
def list_features(context: typer.Context) -> None:
    """List what the store holds, the most recently used last.

    Example: python -m tl_research features list features.store=FOLDER
    """
    from tl_research.features.store_admin import list_entries
    from tl_research.features.summary import show_store

    root = _root(context.args)
    show_store(root, list_entries(root))


@features_app.command("verify", context_settings=PASS_ON)
def verify_features(context: typer.Context) -> None:
    """Read all rows and count the damaged ones, which runs compute again. The exit status is 1 if there are any.

    Example: python -m tl_research features verify
    """
    from tl_research.features.store_admin import list_entries
    from tl_research.system.progress import track

    damaged = 0
    entries = list_entries(_root(context.args))
    for entry in track(entries, "verifying", total=len(entries)):
        for path, positions in entry.damaged().items():
            damaged += len(positions)
            show(f"{path}: {len(positions)} damaged row(s)")
    rows = sum(entry.num_rows for entry in entries)
    show(f"{rows:,} rows, {damaged:,} damaged" + ("; runs compute them anew" if damaged else ""))
    if damaged:
        raise typer.Exit(1)


@features_app.command("prune", context_settings=PASS_ON)
def prune_features(
    context: typer.Context,
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Gigabytes that may stay; default: features.max_gb")
    ] = None,
) -> None:
    """Remove the least recently used features until the store is small enough.

    Example: python -m tl_research features prune --max-gb 5
    """
    from tl_research import compose
    from tl_research.features.store_admin import prune_store

    limit = compose(context.args).features.max_gb if max_gb is None else max_gb
    if limit is None:
        raise InputError("features.max_gb=null: say how much may stay, such as --max-gb 5")
    freed = prune_store(_root(context.args), limit * 1e9)
    show(f"{freed / 1e6:,.1f} MB removed")
