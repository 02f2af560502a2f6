"""Test which variables training changes, bit for bit, with the real train step."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.backend.test_train_step import update
from tl_research.models import weights
from tl_research.models.blocks import find_blocks
from tl_research.models.classifier import BatchNorm, Parameters, Part, build_classifier, set_trainable, trainable_table
from tl_research.models.custom_backbone import Custom
from tl_research.models.head import MLP, Linear
from tl_research.models.trainable_plan import TrainablePlan

TINY = Custom(
    name="tiny", build="tl_research.models.networks.tiny:Tiny", image_size=32, weights=None, preprocessing="tf"
)  # type: ignore[call-arg]


@pytest.fixture
def classifier() -> keras.Model:
    backbone = TINY.build()
    return build_classifier(backbone, Linear().build(32, 2))


def fit(classifier: keras.Model, parts: list[Part]) -> dict[str, bool]:
    """Train for two updates; return the paths of changed variables."""
    before = {v.path: np.array(v) for v in classifier.variables}
    rng = np.random.default_rng(0)
    update(TrainablePlan(classifier, parts), rng.integers(0, 256, (2, 8, 32, 32, 3), np.uint8))
    return {v.path: not np.array_equal(before[v.path], v) for v in classifier.variables if v.path in before}


def is_statistic(path: str) -> bool:
    return path.endswith(("moving_mean", "moving_variance"))


def is_norm(path: str) -> bool:
    return "_bn/" in path


def test_frozen_trains_the_head_only(classifier: keras.Model) -> None:
    moved = fit(classifier, set_trainable(classifier, 0))
    assert {path for path, changed in moved.items() if changed} == {p for p in moved if "logits" in p}


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
def test_batch_norm_policies_in_unfrozen_blocks(classifier: keras.Model, policy: BatchNorm) -> None:
    moved = fit(classifier, set_trainable(classifier, "all", policy))
    statistics = {moved[p] for p in moved if is_statistic(p)}
    scales = {moved[p] for p in moved if is_norm(p) and not is_statistic(p)}
    kernels = {moved[p] for p in moved if not is_norm(p) and "logits" not in p}
    assert kernels == {True}
    assert statistics == {policy != "frozen"}
    assert scales == {policy == "train"}


def nested(include_top: bool, weights: None, input_shape: tuple[int, int, int]) -> keras.Model:
    """Build models in a model."""
    image = keras.Input(input_shape)
    maps = image
    for name in ("a", "b", "c"):
        convolve = keras.layers.Conv2D(4, 3, 2, "same", name=f"{name}_conv")
        inner = [convolve, keras.layers.BatchNormalization(name=f"{name}_bn"), keras.layers.ReLU(name=f"{name}_relu")]
        maps = keras.Sequential(inner, name=name)(maps)
    return keras.Model(image, maps)


def same_names(include_top: bool, weights: None, input_shape: tuple[int, int, int]) -> keras.Model:
    """Build two nested models whose layers have the same names, which cannot be flattened."""
    image = keras.Input(input_shape)
    maps = image
    for name in ("a", "b"):
        inner = [keras.layers.Conv2D(4, 3, 2, "same", name="conv"), keras.layers.BatchNormalization(name="x_bn")]
        maps = keras.Sequential(inner, name=name)(maps)
    return keras.Model(image, maps)


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
@pytest.mark.parametrize("function", ["nested", "same_names"])
def test_nested_batch_norm_follows_the_policy(
    function: str, policy: BatchNorm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "check_layers", lambda *_: None)  # a run would refuse the layer of layers
    build = f"tests.models.test_classifier:{function}"
    recipe = Custom(name="x", build=build, image_size=32, weights=None, preprocessing="tf")  # type: ignore[call-arg]
    backbone = recipe.build()
    classifier = build_classifier(backbone, Linear().build(backbone.output_shape[-1], 2))
    parts = set_trainable(classifier, "all", policy)
    listed = {id(variable) for part in parts for variable in (*part.learning, *part.statistics)}
    moved = fit(classifier, parts)
    expected = {variable.path for variable in classifier.variables if id(variable) in listed}
    assert {path for path, changed in moved.items() if changed} == expected
    assert {moved[p] for p in moved if is_statistic(p)} == {policy != "frozen"}
    assert {moved[p] for p in moved if is_norm(p) and not is_statistic(p)} == {policy == "train"}
    assert {row.batch_norm for row in trainable_table(parts)[:-1]} == {policy}
    assert len(parts) == (4 if function == "nested" else 3)
    frozen = fit(classifier, set_trainable(classifier, 0))
    assert {path for path, changed in frozen.items() if changed} == {p for p in frozen if "logits" in p}


@pytest.mark.parametrize("unfreeze", [1, 2])
def test_blocks_unfreeze_from_the_top(classifier: keras.Model, unfreeze: int) -> None:
    moved = fit(classifier, set_trainable(classifier, unfreeze, "train"))
    parts = find_blocks(classifier.get_layer("backbone"))
    for number, block in enumerate(parts):
        paths = [w.path for layer in block.layers for w in layer.weights]
        assert {moved[path] for path in paths} == {number >= len(parts) - unfreeze}


@pytest.mark.parametrize(("parameters", "names"), [("batch_norm", {"gamma", "beta"}), ("bias", {"bias", "beta"})])
def test_selected_parameters_train_even_if_batch_norm_is_frozen(
    classifier: keras.Model, parameters: Parameters, names: set[str]
) -> None:
    moved = fit(classifier, set_trainable(classifier, "all", parameters=parameters))
    backbone = {path for path, changed in moved.items() if changed and "logits" not in path}
    assert backbone == {p for p in moved if p.rpartition("/")[2] in names and "logits" not in p}
    assert backbone


def test_freezing_again_after_training_works(classifier: keras.Model) -> None:
    fit(classifier, set_trainable(classifier, "all", "adapt"))
    moved = fit(classifier, set_trainable(classifier, 0))
    assert {path for path, changed in moved.items() if changed} == {
        v.path for v in classifier.get_layer("head").weights
    }
    assert all(fit(classifier, set_trainable(classifier, "all", "train")).values())


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
@pytest.mark.parametrize("parameters", ["all", "batch_norm", "bias"])
def test_the_table_lists_what_is_trained(classifier: keras.Model, policy: BatchNorm, parameters: Parameters) -> None:
    parts = set_trainable(classifier, 1, policy, parameters, layer_decay=0.5)
    moved = fit(classifier, parts)
    size = {v.path: int(np.prod(v.shape)) for v in classifier.variables}
    rows = trainable_table(parts)
    assert sum(row.trainable for row in rows) == sum(
        size[p] for p, changed in moved.items() if changed and not is_statistic(p)
    )
    own = {"all": policy, "batch_norm": "train", "bias": "train"}[parameters]
    if policy == "frozen" and parameters != "all":
        own = "gamma, beta"
    assert [row.batch_norm for row in rows] == ["frozen", "frozen", own, "-"]
    assert [row.rate for row in rows] == [0, 0, 0.5, 1]
    assert any(moved[p] for p in moved if is_statistic(p)) == (policy != "frozen")


def test_heads_return_float32_logits_for_the_datas_classes() -> None:
    for head in (Linear(), MLP(layers=2, units=8)):
        model = head.build(5, 3)
        assert model.name == "head"
        assert model.output_shape == (None, 3)
        assert model(np.zeros((1, 5), np.float32)).dtype == "float32"
