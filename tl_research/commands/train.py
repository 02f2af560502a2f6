"""`train`: the same as `python train.py`."""

from __future__ import annotations

import sys
from typing import Literal, NoReturn

import typer


def train_command(context: typer.Context) -> None:
    """Train a model: the same as `python train.py`, from any folder.

    Example: python -m tl_research train backbone=resnet50 data=folder data.root=PHOTOS
    """
    hand_over("train", context.args)


def hand_over(command: Literal["train", "extract"], overrides: list[str]) -> NoReturn:
    """Hand over to the entry of `python train.py`, which reads the command line itself."""
    from tl_research.config.entry import main
    from tl_research.system.process import exit_now

    sys.argv = ["train.py", *overrides]
    exit_now(main(command))
