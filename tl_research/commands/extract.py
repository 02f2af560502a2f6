"""`extract`: features of all images into the store."""

from __future__ import annotations

import typer

from tl_research.commands.train import hand_over


def extract_command(context: typer.Context) -> None:
    """Compute the features of all images and store them; train nothing.

    Example: python -m tl_research extract -m shard=0/4,1/4,2/4,3/4 data=folder data.root=PHOTOS
    """
    hand_over("extract", context.args)
