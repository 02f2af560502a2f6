"""16 bits: chosen if every GPU gains, only during training, and with weights that stay float32."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.experiment.test_experiment import run, table
from tests.models.test_backbone import recipe
from tl_research.backend.precision import Precision, choose_policy, compute_in
from tl_research.backend.train_step import Learning, StepOptions, TrainStep
from tl_research.models.head import Linear

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.float32)
TARGETS = np.eye(2, dtype=np.float32)[np.arange(16) % 2]


@pytest.fixture
def backbone() -> keras.Model:
    """Build the tiny backbone, with batch norm of random statistics."""
    network = recipe("tiny", image_size=32).build()
    rng = np.random.default_rng(1)
    for weight in network.weights:
        if "_bn/" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], "float32"),
        ([{"compute_capability": (8, 0)}], "mixed_bfloat16"),
        ([{"compute_capability": (9, 0)}, {"compute_capability": (10, 0)}], "mixed_bfloat16"),
        ([{"compute_capability": (7, 5)}], "float32"),
        ([{"compute_capability": (9, 0)}, {"compute_capability": (7, 5)}], "float32"),
        ([{}], "float32"),
    ],
    ids=["cpu", "a100", "two", "t4", "mixed", "unknown"],
)
def test_auto_precision_takes_16_bits_if_every_gpu_gains(
    gpus: list[dict[str, tuple[int, int]]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs are simulated."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(range(len(gpus))) if kind == "GPU" else 1)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: gpus[gpu])
    assert choose_policy("auto") == expected
    assert choose_policy("mixed_float16") == "mixed_float16"
    assert choose_policy("float32") == "float32"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_a_policy_holds_inside_except_for_preprocessing(backbone: keras.Model, policy: Precision) -> None:
    def policies() -> dict[str, str]:
        return {layer.name: layer.dtype_policy.name for layer in backbone.layers}

    def gives() -> str:
        return keras.backend.standardize_dtype(backbone(PIXELS[:1]).dtype)

    before = policies()
    assert set(before.values()) == {"float32"}
    with compute_in(policy, backbone):
        plain = {name for name, inside in policies().items() if inside == "float32"}
        assert gives() == policy.removeprefix("mixed_")
    kinds = {type(backbone.get_layer(name)).__name__ for name in plain}
    assert "Rescaling" in kinds
    assert kinds <= {"InputLayer", "Rescaling", "Normalization"} or policy == "float32"
    assert policies() == before
    assert gives() == "float32"
    with pytest.raises(KeyError), compute_in(policy, backbone):
        raise KeyError
    assert policies() == before


def trained(backbone: keras.Model, policy: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return logits and weights after three updates in `policy`; the backbone is restored."""
    keras.utils.set_random_seed(0)
    head = Linear().build(32, 2)
    start = backbone.get_weights()
    with compute_in(policy, backbone):
        step = TrainStep(
            lambda pixels: head(backbone(pixels, training=False)),
            [Learning(variable) for variable in [*backbone.trainable_variables, *head.trainable_variables]],
            [],
            keras.optimizers.SGD(),
            StepOptions(loss_scale=policy == "mixed_float16"),
        )
        for _ in range(3):
            step([(PIXELS, TARGETS)], 0.01)
        logits = head(backbone(PIXELS, training=False))
    assert {variable.dtype for variable in [*backbone.variables, *head.variables]} <= {"float32", "uint32"}
    weights = [*backbone.get_weights(), *head.get_weights()]
    backbone.set_weights(start)
    return np.asarray(logits), weights


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_training_in_16_bits_is_close_to_32(backbone: keras.Model, policy: str) -> None:
    start = backbone.get_weights()
    logits, weights = trained(backbone, policy)
    expected, others = trained(backbone, "float32")
    assert logits.dtype == np.float32
    rounding = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[policy]
    apart = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 0 < apart < 2 * rounding
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(others, start, strict=False)))
    off = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(others, weights, strict=True)))
    assert 0 < off < 16 * rounding * moved


def test_overflow_halves_the_scale_and_skips_the_update() -> None:
    keras.utils.set_random_seed(0)
    rows = np.full((4, 6), 2000, np.float32)
    backbone = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)])
    head = Linear().build(8, 2)
    parts = [*backbone.trainable_variables, *head.trainable_variables]
    with compute_in("mixed_float16", backbone):
        step = TrainStep(
            lambda x: head(backbone(x)), [Learning(variable) for variable in parts], [], keras.optimizers.SGD(),
            StepOptions(loss_scale=True),
        )  # fmt: skip
        scale = step.variables[-2]
        scales, before = [float(scale)], [np.array(variable) for variable in parts]
        for _ in range(15):
            step([(rows, TARGETS[:4])], 1e-6)
            scales.append(float(scale))
            if scales[-1] == scales[-2]:  # it fits
                break
            assert all(np.array_equal(a, b) for a, b in zip(parts, before, strict=True))
    assert 5 <= len(scales) < 15
    assert scales[:-1] == [2.0 ** (15 - n) for n in range(len(scales) - 1)]
    assert not any(np.array_equal(a, b) for a, b in zip(parts, before, strict=True))
    assert all(np.isfinite(variable).all() for variable in parts)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_a_run_in_16_bits_saves_a_model_in_32(tmp_path: Path, colours: Path, policy: str) -> None:
    done = run(tmp_path / "run", colours, "transfer=finetune", "transfer.backbone.epochs=2", "callbacks=none",
               f"trainer.precision={policy}")  # fmt: skip
    with zipfile.ZipFile(done.directory / "model.keras") as file:
        config = file.read("config.json").decode()
    assert "float16" not in config
    assert {weight.dtype for weight in done.model().weights} == {"float32"}
    assert [row["stage"] for row in table(done.directory / "history.csv")] == ["head", "backbone", "backbone"]
    assert done.metrics["test_accuracy"] > 0.9
