"""`blocks`: what `unfreeze` counts."""

from __future__ import annotations

import shlex
from dataclasses import replace

import typer


def blocks_command(context: typer.Context) -> None:
    """List the blocks of a backbone as `unfreeze` counts them, with the parameters and compute of each.

    Example: python -m tl_research blocks backbone=resnet50
    """
    from tl_research import compose
    from tl_research.backend.start import start_backend
    from tl_research.models.backbone import Saved
    from tl_research.models.combined import Auto
    from tl_research.models.summary import show_blocks

    recipe = compose(context.args).backbone
    if not isinstance(recipe, Saved | Auto):
        recipe = replace(recipe, weights=None)  # the structure is the same, and no file is needed
    recipe.preflight()
    start_backend()
    show_blocks(recipe.name, recipe.build(), shlex.join(["python", "train.py", *context.args]))
