"""What is known of the licences of pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_APPLICATIONS = {
    "VGG16": "CC-BY-4.0",
    "ResNet50": "MIT",
    "ResNet50V2": "Apache-2.0",
    "Xception": "MIT",
    "DenseNet121": "BSD-3-Clause",
    "ConvNeXtTiny": "MIT",
    **dict.fromkeys(("InceptionV3", "InceptionResNetV2", "MobileNetV2", "MobileNetV3Large"), "Apache-2.0"),
    **dict.fromkeys(("EfficientNetB0", "EfficientNetV2B0"), "Apache-2.0"),
}
"""As their authors published them; Keras' pages on its applications name most."""


def describe_weights(backbone: Mapping[str, Any]) -> dict[str, str | None]:
    """Describe the weights that a backbone's configuration names, for `weights.json`: `backbone`, `weights` (a file
    without its folder) and `licence`, null where it is not known or, with random weights, needs none."""
    backbone = backbone.get("chosen") or backbone
    parts = [describe_weights(part) for part in backbone.get("parts", ())]
    loaded = [part for part in parts if part["weights"]]
    if loaded and backbone.get("weights"):
        parts = [part | {"weights": part["weights"] or "random"} for part in parts]
        return {key: _joined([each[key] for each in (loaded if key == "licence" else parts)]) for key in parts[0]}
    weights = None if parts else backbone.get("weights")
    licence = None
    if weights == "imagenet":
        is_lite = "variant" in backbone
        known = backbone.get("licence") or _APPLICATIONS.get(str(backbone.get("application")))
        licence = "Apache-2.0" if is_lite else known
    source = None if weights is None else PurePath(str(weights)).name
    return {"backbone": backbone.get("name"), "weights": source, "licence": licence}


def _joined(texts: Sequence[str | None]) -> str | None:
    """Join what differs; None if one is not known."""
    return None if None in texts else " + ".join(dict.fromkeys(map(str, texts)))
