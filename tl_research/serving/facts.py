"""What an exported model says about itself, in whatever way its format has for that."""

from __future__ import annotations

from typing import Any

from tl_research import __version__
from tl_research.errors import InputError
from tl_research.runs.reader import answering_backbone
from tl_research.runs.run import Run


def facts_of(run: Run) -> dict[str, Any]:
    """Collect what a user of a run's model must know. Raises `InputError` if the run lacks it."""
    names, backbone = run.class_names(), answering_backbone(run.config, run.metrics)
    size = backbone.get("image_size")
    if not isinstance(size, int):
        raise InputError(f"{run.directory}: its config.yaml does not say backbone.image_size; copy the run again")
    return {
        "class_names": names,
        "input": f"pixels: uint8 (n, {size}, {size}, 3), RGB 0 to 255, n as you like",
        "output": f"probabilities: float32 (n, {len(names)}), in the order of class_names",
        "image_size": size,
        "resize": run.resize,
        "bits": run.pixel_range.bits,
        "window": run.pixel_range.window,
        "preprocessing": f"{backbone.get('preprocessing')}, in the model",
        "temperature": run.calibration["temperature"],
        "weights": run.weights,
        "version": __version__,
    }
