"""The lines about an exported model."""

from __future__ import annotations

from tl_research.serving.export import TOLERANCE, Exported
from tl_research.system.console import show

MOST_CHANGED = 10


def show_export(exported: Exported, float32: Exported | None = None) -> None:
    """Show size, latency, and how the answers compare with the run's; of an int8 model beside those of the same model
    in `float32`."""
    show(f"{exported.folder}: {_cost(exported)}", *([f"  float32: {_cost(float32)}"] if float32 else []))
    what = f"{exported.num_images} images: largest difference of a probability {exported.difference:.1g}"
    if exported.accuracy is None:
        show(f"{what} (at most {TOLERANCE:g}), the same class for all")
        return
    show(f"{what}, {len(exported.changed)} get another class")
    for path, before, after in exported.changed[:MOST_CHANGED]:
        show(f"  {path or 'a photograph of another subject'}: {before} -> {after}")
    old, new = exported.accuracy
    show(f"accuracy on training and validation images: {old:.3f} -> {new:.3f}")


def _cost(exported: Exported) -> str:
    one, many = exported.milliseconds
    return f"{exported.num_bytes / 1e6:.1f} MB, {one:.1f} ms for one image, {many:.1f} ms each for 16"
