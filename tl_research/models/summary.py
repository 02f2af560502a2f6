"""The tables of a model: its parts, and the blocks of its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tl_research.models.blocks import find_blocks, multiply_accumulates
from tl_research.system.console import make_table, show, show_table

if TYPE_CHECKING:
    import keras


def show_model(name: str, backbone: keras.Model, head: keras.Model | None) -> None:
    """Show one line for each part of a model; `model.summary()` of Keras has every layer."""
    table = make_table("model", "part", "in", "out", "layers", "parameters")
    for part, network in ((f"backbone {name}", backbone), ("head", head)):
        if network is not None:
            shape = [" x ".join(map(str, s[1:])) for s in (network.input_shape, network.output_shape)]
            table.add_row(part, *shape, str(len(network.layers)), f"{network.count_params():,}")
        else:
            table.add_row(part, "", "", "", "made from features")
    show_table(table)


def show_surgery(name: str, model: keras.Model, network: keras.Model, added: Sequence[str]) -> None:
    """Show what of a model's file is kept as the backbone, what is cut off, and what is put around it."""
    kept = {operation.name for operation in network.operations}
    lost = [operation for operation in model.operations if operation.name not in kept]
    table = make_table(name, "part", "layers", "parameters", "what")
    image, features = (" x ".join(map(str, shape[1:])) for shape in (network.input_shape, network.output_shape))
    table.add_row("kept", str(len(network.layers)), f"{network.count_params():,}", f"{image} -> {features}")
    parameters = sum(layer.count_params() for layer in lost if hasattr(layer, "count_params"))
    table.add_row("cut off", str(len(lost)), f"{parameters:,}", ", ".join(layer.name for layer in lost) or "nothing")
    table.add_row("added", str(len(added)), "0", ", ".join(added))
    show_table(table)


def show_blocks(name: str, backbone: keras.Model, command: str) -> None:
    """Show the blocks of a backbone as `unfreeze` counts them, from the top: the share of each, and the share that
    learns and is computed when it is unfrozen with those above it. Then `command` with that option."""
    parts, macs = find_blocks(backbone)[::-1], multiply_accumulates(backbone)[::-1]
    parameters = [part.num_parameters for part in parts]
    shares = [np.array(values) * 100 / max(sum(values), 1) for values in (parameters, macs)]
    title = f"{name}: {sum(parameters):,} parameters, {sum(macs) / 1e9:.3g} billion multiply-accumulates an image"
    columns = ("unfreeze", "block that ends with", "output", "layers", "parameters", "share", "compute")
    table = make_table(title, *columns, "learning", "its compute")
    for number, part in enumerate(parts):
        cells = [f"{of[number]:.1f} %" for of in (*shares, *map(np.cumsum, shares))]
        output = " x ".join(map(str, part.output_shape))
        table.add_row(str(number + 1), part.name, output, str(len(part.layers)), f"{part.num_parameters:,}", *cells)
    show_table(table)
    number = min(2, len(parts))
    show(f"so many learn with: {command} transfer=finetune transfer.backbone.unfreeze={number}")
