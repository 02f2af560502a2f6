"""What is known of the licences of pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
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
    weights = backbone.get("weights")
    licence = None
    if weights == "imagenet":
        is_lite = "variant" in backbone
        known = backbone.get("licence") or _APPLICATIONS.get(str(backbone.get("application")))
        licence = "Apache-2.0" if is_lite else known
    source = None if weights is None else PurePath(str(weights)).name
    return {"backbone": backbone.get("name"), "weights": source, "licence": licence}
