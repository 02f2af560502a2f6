"""Vision transformers: tokens equal timm's and transformers', from files with names of either; what is refused; runs,
whose frozen blocks stay, and whose engines and exports answer alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.golden.make_vision_transformers import HUGGING_FACE, NETWORKS, drawn_image, drawn_weights
from tests.support.safetensors import write_safetensors
from tl_research import Run, compose
from tl_research.errors import InputError
from tl_research.evaluation.explain import Explainer
from tl_research.features.engines import BATCH, build_engine
from tl_research.models.transformer_backbone import VisionTransformer
from tl_research.models.weights.safetensors_file import read_safetensors
from tl_research.models.weights.transformer_file import interpolate_positions
from tl_research.serving.export import export_run

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vision_transformers.json").read_text())["networks"]
TINY = VisionTransformer(
    name="vit", image_size=32, weights=None, preprocessing="none", min_size=1,
    patch=8, width=16, depth=2, heads=2, url="https://example.com/a", licence="MIT",
)  # fmt: skip


def recipe(name: str, weights: Path | None) -> VisionTransformer:
    """Give the recipe of a network in the golden file."""
    options = {**NETWORKS, **{key: value for key, (_, value) in HUGGING_FACE.items()}}[name]
    registers = options.get("reg_tokens", options.get("num_register_tokens", int("distilled" in name)))
    return replace(
        TINY, weights=weights and str(weights), image_size=GOLDEN[name]["image_size"], patch=options["patch_size"],
        registers=registers, layer_scale="dinov2" in name,
    )  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_equal_those_of_timm_and_transformers(tmp_path: Path, name: str) -> None:
    import keras

    file = write_safetensors(tmp_path / "w.safetensors", drawn_weights(GOLDEN[name]["shapes"]))
    backbone = recipe(name, file)
    backbone.preflight()
    network = backbone.network()
    both = keras.Model(network.input, [network.get_layer("tokens").output, network.output])
    tokens, features = (np.asarray(each)[0] for each in both(drawn_image(backbone.image_size)[None]))
    np.testing.assert_allclose(tokens, GOLDEN[name]["tokens"], rtol=0, atol=1e-4)
    patches = tokens[1 + backbone.registers :]
    np.testing.assert_allclose(features, np.concatenate([tokens[0], patches.mean(axis=0)]), atol=1e-5)


def test_a_lower_layer_gives_class_token_and_mean() -> None:
    import keras

    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    lower, network = replace(TINY, layer="block1").build(), TINY.network()
    for layer in lower.layers[1:]:
        network.get_layer(layer.name).set_weights(layer.get_weights())
    expected = np.asarray(keras.Model(network.input, network.get_layer("block1").output)(images))
    features = np.concatenate([expected[:, 0], expected[:, 1:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(np.asarray(lower(images)), features, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="gives no tokens; give that of a block"):
        replace(TINY, layer="patch_rows").build()


def renamed(tensors: dict[str, np.ndarray], name: str, new: str) -> dict[str, np.ndarray]:
    return {new if key == name else key: value for key, value in tensors.items()}


WRONG = {
    "of another depth": (lambda t: {k: v for k, v in t.items() if "blocks.1" not in k}, "holds no blocks.1"),
    "deeper": (lambda t: {**t, "blocks.2.norm1.weight": t["norm.weight"]}, "left over are blocks.2.norm1.weight"),
    "wider": (lambda t: {**t, "norm.weight": np.ones(32, np.float32)}, r"norm.weight is \(32,\), not \(16,\)"),
    "normalized before": (lambda t: renamed(t, "norm.bias", "norm_pre.bias"), "holds no norm.bias"),
    "of no square grid": (lambda t: {**t, "pos_embed": np.ones((1, 16, 9), np.float32)}, "no square grid"),
    "of a convolutional network": (lambda t: {"conv1.weight": t["norm.weight"]}, "holds no cls_token"),
    "empty": (lambda t: {}, "holds no cls_token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_networks_file_is_refused_before_tensorflow(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    file = write_safetensors(tmp_path / "w.safetensors", change(drawn_weights(GOLDEN["vit"]["shapes"])))
    with pytest.raises(InputError, match=message) as error:
        recipe("vit", file).preflight()
    assert str(error.value).startswith(f"backbone.weights: {file} is another network's")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = drawn_weights(GOLDEN["vit"]["shapes"])
    tensors["norm.bias"][3] = np.nan
    with pytest.raises(InputError, match="holds NaN or infinity"):
        recipe("vit", write_safetensors(tmp_path / "w.safetensors", tensors)).network()


HOSTILE = {
    "cut short": lambda content: content[:-10],
    "cut in the header": lambda content: content[:100],
    "a few bytes": lambda content: content[:5],
    "nothing": lambda content: b"",
    "a header as long as memory": lambda content: b"\xff" * 8 + content[8:],
    "nested without end": lambda content: (50_000).to_bytes(8, "little") + b"[" * 50_000,
    "a list": lambda content: (2).to_bytes(8, "little") + b"[]",
    "an unknown type": lambda content: content.replace(b'"F32"', b'"X32"'),
    "a negative shape": lambda content: content.replace(b"[16]", b"[-1]"),
    "a larger shape": lambda content: content.replace(b"[16]", b"[99]"),
    "a web page": lambda content: b"<!DOCTYPE html><html>Not found</html>",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    file = write_safetensors(tmp_path / "w.safetensors", drawn_weights(GOLDEN["vit"]["shapes"]))
    file.write_bytes(HOSTILE[case](file.read_bytes()))
    with pytest.raises(InputError, match=r"w\.safetensors .*(not a whole safetensors file|cannot be read)"):
        recipe("vit", file).preflight()


def test_sixteen_bits_are_read(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 0.15625], np.float32)
    bits = (values.view("<u4") >> 16).astype("<u2")
    file = write_safetensors(tmp_path / "w.safetensors", {"a": values.astype("<f2"), "b": bits}, {"b": "BF16"})
    assert {name: array.tolist() for name, array in read_safetensors(file).items()} == dict.fromkeys(
        "ab", values.tolist()
    )


def test_positions_of_the_same_grid_stay_bit_for_bit() -> None:
    positions = np.random.default_rng(0).normal(size=(49, 3)).astype(np.float32)
    assert interpolate_positions(positions, 7) is positions
    assert interpolate_positions(np.ones((49, 3), np.float32), 5) == pytest.approx(1.0)


def test_the_error_names_file_address_licence_and_place(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        compose(["backbone=vit_small_patch14_dinov2"]).preflight()
    place = tmp_path / "models" / "vit_small_patch14_dinov2.safetensors"
    for said in ("https://huggingface.co/timm/vit_small_patch14_dinov2", "Apache-2.0", str(place), "weights=FILE"):
        assert said in str(error.value)


@pytest.mark.parametrize(("size", "message"), [(230, r"multiple of 14.*give 224$"), (5, "give 14$")])
def test_an_image_is_whole_patches(size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(["backbone=vit_small_patch14_dinov2", f"backbone.image_size={size}"])


# Runs

RUN = [
    "backbone=vit_small_patch14_reg4_dinov2", "backbone.weights=null", "backbone.width=32", "backbone.depth=3",
    "backbone.heads=2", "backbone.image_size=28", "data=folder", "callbacks=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    stage = [f"transfer.backbone.{each}" for each in ("epochs=2", "unfreeze=2", "layer_decay=0.1", "learning_rate=0.1")]
    options = [*RUN, f"data.root={colours}", "transfer=finetune", *stage]
    return compose(options).run(tmp_path_factory.mktemp("transformer") / "run")


@pytest.mark.slow
def test_frozen_blocks_stay_and_lower_ones_move_less(run: Run) -> None:
    loaded, trained = compose([*RUN, "data.root=PHOTOS"]).backbone.build(), run.model().get_layer("backbone")
    moved = {}
    for layer in loaded.layers:
        pairs = zip(layer.get_weights(), trained.get_layer(layer.name).get_weights(), strict=True)
        moved[layer.name] = max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)
    frozen = [name for name in moved if name.startswith(("embed", "block1"))]
    assert len(frozen) == 11
    assert {moved[name] for name in frozen} == {0.0}
    assert 0 < 3 * moved["block2_dense1"] < moved["block3_dense1"]


@pytest.mark.slow
def test_maps_are_of_feature_maps_and_occlusion_is_offered(run: Run) -> None:
    with pytest.raises(InputError, match=r"no feature map; give --method occlusion"):
        Explainer(run)
    assert Explainer(run, method="occlusion")


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["savedmodel", "onnx", "openvino", "litert"])
def test_each_export_answers_as_the_run(run: Run, format_: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "tf2onnx", "litert": "ai_edge_litert"}.get(format_, "openvino"))
    export_run(run, format_, tmp_path / "export")


@pytest.mark.slow
def test_openvino_computes_the_features_of_keras() -> None:
    backbone = compose([*RUN, "data.root=PHOTOS"]).backbone.build()
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 28, 28, 3)).astype(np.uint8)
    ours, theirs = (build_engine(name, backbone, 2)(pixels) for name in ("openvino", "keras"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
