"""Test where blocks end, that splitting a backbone keeps every bit, and what a block costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.models.test_backbone import NETWORKS, pictures, recipe, smallest
from tl_research.__main__ import app
from tl_research.features.table import network_digest
from tl_research.models.blocks import find_blocks, multiply_accumulates, split_backbone
from tl_research.system import console

layers = keras.layers

# Where the papers' figures start a new stage; a stem's pooling belongs to the stem.
ENDS = {
    "convnext_tiny": "add_2 add_5 add_14 layer_normalization",
    "densenet121": "pool1 pool2_pool pool3_pool pool4_pool avg_pool",
    "efficientnet_b0": "block1a_project_bn block2b_add block3b_add block5c_add avg_pool",
    "efficientnet_lite0": "block1a_project_bn block2b_add block3b_add block5c_add features",
    "efficientnet_lite1": "block1a_project_bn block2c_add block3c_add block5d_add features",
    "efficientnet_lite2": "block1a_project_bn block2c_add block3c_add block5d_add features",
    "efficientnet_v2_b0": "block1a_project_activation block2b_add block3b_add block5e_add avg_pool",
    "inception_resnet_v2": "max_pooling2d max_pooling2d_1 block35_10_ac block17_20_ac global_average_pooling2d",
    "inception_v3": "max_pooling2d max_pooling2d_1 mixed2 mixed7 global_average_pooling2d",
    "mobilenet_v2": "expanded_conv_project_BN block_2_add block_5_add block_12_add global_average_pooling2d",
    "mobilenet_v3_large": "expanded_conv_add expanded_conv_2_add expanded_conv_5_add expanded_conv_11_add avg_pool",
    "resnet50": "pool1_pool conv2_block3_out conv3_block4_out conv4_block6_out avg_pool",
    "resnet50_v2": "pool1_pool conv2_block2_out conv3_block3_out conv4_block5_out avg_pool",
    "tiny": "block1_relu block2_add features",
    "vgg16": "block1_pool block2_pool block3_pool block4_pool global_average_pooling2d",
    "xception": "block1_conv2_act add add_1 add_10 global_average_pooling2d",
}


def names(network: keras.Model) -> list[str]:
    return [block.name for block in find_blocks(network)]


only_tiny_quick = pytest.mark.parametrize(
    "name", [name if name == "tiny" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)


@only_tiny_quick
def test_blocks_are_the_stages_of_the_papers(name: str) -> None:
    assert names(recipe(name).build()) == ENDS[name].split()


@only_tiny_quick
def test_a_split_backbone_is_bit_equal_and_unchanged(name: str, tmp_path: Path) -> None:
    backbone = recipe(name, image_size=smallest(name)).build()
    parts, architecture = find_blocks(backbone), backbone.to_json()
    assert names(backbone) == ENDS[name].split(), "as at its own size"
    pixels = pictures(backbone.input_shape[1])
    expected = np.asarray(backbone(pixels, training=False))
    for unfreeze in range(1, len(parts)):
        prefix, tail = split_backbone(backbone, unfreeze)
        assert prefix.output_shape[1:] == parts[-unfreeze - 1].output_shape
        found = np.asarray(tail(prefix(pixels, training=False), training=False))
        np.testing.assert_array_equal(found, expected)
        assert find_blocks(backbone) == parts, "calls in the parts' graphs are none of the backbone's"
        assert names(prefix) == names(backbone)[:-unfreeze]
        assert names(tail) == names(backbone)[-unfreeze:]
        assert sorted(map(id, prefix.weights + tail.weights)) == sorted(map(id, backbone.weights))
        assert sum(multiply_accumulates(tail)) == sum(multiply_accumulates(backbone)[-unfreeze:])
    assert backbone.to_json() == architecture


def test_training_the_tail_trains_the_backbone() -> None:
    backbone = recipe("tiny").build()
    prefix, tail = split_backbone(backbone, 1)
    pixels = pictures(64)
    before = np.asarray(backbone(pixels, training=False))
    for weight in tail.trainable_weights:
        weight.assign(weight * 1.5)
    after = np.asarray(backbone(pixels, training=False))
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(after, tail(prefix(pixels, training=False), training=False))


def test_both_parts_need_a_block() -> None:
    backbone = recipe("tiny").build()
    for unfreeze in (0, 3, 4):
        with pytest.raises(ValueError, match=f"unfreeze={unfreeze}: backbone has 3 blocks"):
            split_backbone(backbone, unfreeze)


# Keys of a prefix's stored maps

KEYS = """
import sys
from tests.models.test_backbone import recipe
from tests.models.test_blocks import keys
if sys.argv[1] == "first":
    recipe("mobilenet_v2", image_size=64).build()
print(*keys(sys.argv[2:]))
"""


def keys(of: list[str]) -> list[str]:
    found = []
    for name in of:
        backbone = recipe(name, image_size=smallest(name)).build()
        found += [network_digest(split_backbone(backbone, unfreeze)[0]) for unfreeze in (1, 2)]
    return found


def test_a_prefix_is_frozen_and_its_key_independent_of_history() -> None:
    expected = keys(["tiny"])
    keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(1, 3), layers.ReLU()])
    backbone = recipe("tiny", image_size=64).build()
    for unfreeze in (2, 1):
        split_backbone(backbone, unfreeze)
    backbone.trainable = False
    assert [network_digest(split_backbone(backbone, n)[0]) for n in (1, 2)] == expected
    assert len(set(expected)) == 2
    backbone.weights[0].assign(backbone.weights[0] * 2)
    assert network_digest(split_backbone(backbone, 1)[0]) not in expected


@pytest.mark.slow
def test_a_prefix_has_one_key_in_all_processes() -> None:
    def printed_keys(how: str, of: list[str]) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", KEYS, how, *of],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    some = ["inception_v3", "efficientnet_b0", "mobilenet_v3_large", "tiny"]  # whose layers Keras numbers
    one, other = printed_keys("first", some), printed_keys("alone", some[::-1])
    assert one == [key for n in range(len(some))[::-1] for key in other[2 * n : 2 * n + 2]]
    assert len(set(one)) == len(one)


# Handmade graphs


def model(body: Callable[[keras.KerasTensor], keras.KerasTensor], size: int = 32) -> keras.Model:
    image = keras.Input((size, size, 3))
    return keras.Model(image, body(image), name="backbone")


def conv(name: str, filters: int = 8, kernel: int = 3, stride: int = 1) -> keras.Layer:
    return layers.Conv2D(filters, kernel, stride, padding="same", name=name)


def chain(*parts: keras.Layer) -> keras.Model:
    def body(x: keras.KerasTensor) -> keras.KerasTensor:
        for part in parts:
            x = part(x)
        return x

    return model(body)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([conv("a"), conv("b", stride=2)], ["a", "b"]),
        ([conv("a"), layers.MaxPooling2D(name="pool"), layers.ReLU(name="relu"), conv("b")], ["relu", "b"]),
        ([conv("a"), conv("expand", 48, 1), conv("b", stride=2)], ["a", "b"]),
        ([conv("a"), conv("wider", 48), conv("b", stride=2)], ["wider", "b"]),
        ([layers.MaxPooling2D(), conv("a"), conv("b", stride=2), layers.MaxPooling2D(name="end")], ["a", "end"]),
        ([layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")], ["b"]),  # 32 -> 30 -> 28
        ([conv("a"), layers.Flatten(), layers.Dense(4, name="dense")], ["dense"]),
        ([layers.Rescaling(2.0), layers.ReLU(name="end")], ["end"]),
    ],
    ids=range(8),
)
def test_where_a_block_ends(parts: list[keras.Layer], expected: list[str]) -> None:
    backbone = chain(*parts)
    assert names(backbone) == expected
    assert [o for block in find_blocks(backbone) for o in block.operations] == backbone.operations


def test_shared_layers_are_no_cuts_and_do_not_prevent_others() -> None:
    shared = conv("shared")

    def body(x: keras.KerasTensor) -> keras.KerasTensor:
        x = conv("a")(x)
        twice = layers.Add(name="add")([shared(x), shared(layers.ReLU()(x))])
        return conv("b", stride=2)(twice)

    backbone = model(body)
    expected = [("add", 4), ("b", 1)]
    assert [(block.name, len(block.layers) - (n == 0)) for n, block in enumerate(find_blocks(backbone))] == expected
    keras.Model(backbone.input, layers.Add()([backbone.get_layer("a").output, layers.ReLU()(shared.output)]))
    assert names(backbone) == ["add", "b"]
    prefix, tail = split_backbone(backbone, 1)
    pixels = pictures(32)
    np.testing.assert_array_equal(tail(prefix(pixels)), backbone(pixels))
    assert multiply_accumulates(backbone) == [32 * 32 * (27 * 8 + 2 * 72 * 8), 16 * 16 * 72 * 8]


# Cost of a block


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Conv2D(8, 3, 2, padding="same"), 16 * 16 * 9 * 6 * 8),
        (layers.Conv2D(8, 3, groups=2), 30 * 30 * 9 * 3 * 8),
        (layers.DepthwiseConv2D((1, 5), padding="same", depth_multiplier=2), 32 * 32 * 5 * 6 * 2),
        (layers.SeparableConv2D(8, 3, padding="same"), 32 * 32 * (9 * 6 + 6 * 8)),
        (layers.Dense(7), 32 * 32 * 6 * 7),
        (layers.BatchNormalization(), 0),
        (keras.Sequential([keras.Input((32, 32, 6)), layers.Conv2D(8, 1), layers.Conv2D(4, 2, 2)]),
         32 * 32 * 6 * 8 + 16 * 16 * 4 * 8 * 4),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else "",
)  # fmt: skip
def test_multiply_accumulates_of_a_layer(layer: keras.Layer, expected: int) -> None:
    image = keras.Input((32, 32, 6))
    assert multiply_accumulates(keras.Model(image, layer(image))) == [expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"),  # billions, as papers and torchvision report for one image of 224 x 224
    [
        ("resnet50", 3.8, 4.1),
        ("mobilenet_v2", 0.29, 0.31),
        ("vgg16", 15.3, 15.5),
        ("efficientnet_lite0", 0.38, 0.41),
        ("efficientnet_b0", 0.38, 0.40),
        ("densenet121", 2.8, 2.9),
        ("convnext_tiny", 4.4, 4.5),
        ("mobilenet_v3_large", 0.21, 0.23),
        ("inception_v3", 5.6, 5.8),
        ("xception", 8.3, 8.5),
        ("inception_resnet_v2", 13.1, 13.3),
    ],
)
def test_multiply_accumulates_match_published_figures(name: str, low: float, high: float) -> None:
    assert low < sum(multiply_accumulates(recipe(name).build())) / 1e9 < high


# The command


@only_tiny_quick
def test_the_command_lists_the_blocks_from_the_top(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    result = CliRunner().invoke(app, ["blocks", f"backbone={name}"])
    assert result.exit_code == 0, result.exception
    rows = [line.split() for line in result.stdout.splitlines() if line[:2].strip().isdigit()]
    assert [(row[0], row[1]) for row in rows] == [(str(n), b) for n, b in enumerate(ENDS[name].split()[::-1], 1)]
    assert rows[-1][-4:] == ["100.0", "%", "100.0", "%"]
    assert f"python train.py backbone={name} transfer=finetune transfer.backbone.unfreeze=2" in result.stdout


@pytest.mark.slow
def test_the_blocks_command_reads_a_saved_networks_structure(tmp_path: Path) -> None:
    recipe("tiny", image_size=48).build().save(tmp_path / "mine.keras")
    options = ["backbone=saved", "backbone.image_size=48", f"backbone.weights={tmp_path / 'mine.keras'}"]
    result = CliRunner().invoke(app, ["blocks", *options])
    assert result.exit_code == 0, result.exception
    assert "block2_add" in result.stdout
