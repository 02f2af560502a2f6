"""Make vision_transformers.json, the tokens of timm and transformers for small networks with drawn weights.

python -m venv /tmp/torch && . /tmp/torch/bin/activate
pip install torch==2.13.0 numpy pyyaml huggingface_hub safetensors transformers && pip install --no-deps timm==1.0.31
python tests/models/golden/make_vision_transformers.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}
NETWORKS = {
    "vit": {"img_size": 32, "patch_size": 8, "num_classes": 5},
    "vit_smaller": {"img_size": 48, "patch_size": 8, "num_classes": 0, "now": 32},
    "deit_distilled": {"img_size": 32, "patch_size": 8, "num_classes": 5, "distilled": True},
    "dinov2": {"img_size": 70, "patch_size": 14, "num_classes": 0, "init_values": 1e-5, "now": 42},
    "dinov2_larger": {"img_size": 42, "patch_size": 14, "num_classes": 0, "init_values": 1e-5, "now": 98},
    "dinov2_reg4": {
        **{"img_size": 42, "patch_size": 14, "num_classes": 0, "init_values": 1e-5, "now": 56},
        **{"reg_tokens": 4, "no_embed_class": True},
    },
    "registers_with_positions": {"img_size": 32, "patch_size": 8, "num_classes": 0, "reg_tokens": 4},
}
HUGGING_FACE = {
    "hf_vit": ("ViTForImageClassification", {"image_size": 32, "patch_size": 8}),
    "hf_deit_distilled": ("DeiTForImageClassification", {"image_size": 32, "patch_size": 8}),
    "hf_dinov2": ("Dinov2Model", {"image_size": 42, "patch_size": 14}),
    "hf_dinov2_reg4": ("Dinov2WithRegistersModel", {"image_size": 42, "patch_size": 14, "num_register_tokens": 4}),
}
"""At their own image size: other interpolations are timm's here."""


def drawn_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Draw each tensor of a network, of these shapes by name, so that no weights need be kept."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def drawn_image(size: int) -> np.ndarray:
    """Draw a network's input, `(size, size, 3)` float32."""
    return np.random.default_rng(1).uniform(-1, 1, (size, size, 3)).astype(np.float32)


def main() -> None:
    """Write the tokens next to this script."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    from tests.models.golden.make_efficientnet_lite0 import _NoTorchvision

    def answer(model, shapes, size: int, tokens_of) -> dict:
        pixels = torch.from_numpy(drawn_image(size)).permute(2, 0, 1)[None]
        with torch.no_grad():
            tokens = tokens_of(model.eval(), pixels)[0].numpy()
        return {"image_size": size, "shapes": shapes, "tokens": np.round(tokens, 5).tolist()}

    golden = {}
    for name, (kind, options) in HUGGING_FACE.items():
        config = getattr(transformers, kind).config_class(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=5, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            getattr(transformers, kind)(config).save_pretrained(folder)
            file = Path(folder, "model.safetensors")  # its names are not those of the model
            shapes = {key: list(value.shape) for key, value in load_file(file).items()}
            save_file(drawn_weights(shapes), file, metadata={"format": "pt"})
            model = getattr(transformers, kind).from_pretrained(folder)
        inner = getattr(model, "vit", None) or getattr(model, "deit", None) or model
        golden[name] = answer(inner, shapes, options["image_size"], lambda model, pixels: model(pixels)[0])

    sys.meta_path.insert(0, _NoTorchvision())
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    for name, options in NETWORKS.items():
        given = {key: value for key, value in options.items() if key not in ("now", "distilled")}
        now = options.get("now", options["img_size"])
        constructor = VisionTransformerDistilled if options.get("distilled") else VisionTransformer
        model = constructor(**SIZES, **given)
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        state = {key: torch.from_numpy(value) for key, value in drawn_weights(shapes).items()}
        present = constructor(**SIZES, **given | {"img_size": now})
        present.load_state_dict(checkpoint_filter_fn(state, present), strict=True)
        golden[name] = answer(present, shapes, now, lambda model, pixels: model.forward_features(pixels))
    versions = {name: metadata.version(name) for name in ("timm", "torch", "transformers", "numpy")}
    text = json.dumps({"versions": versions, "networks": golden}, separators=(",", ":")).replace("}},", "}},\n")
    Path(__file__).with_name("vision_transformers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
