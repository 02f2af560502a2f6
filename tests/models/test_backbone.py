"""Test every shipped backbone: preprocessing, blocks that cut no path, saving and loading."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backend.test_train_step import update
from tests.conftest import ROOT
from tests.models.test_weights import save
from tl_research import InputError, compose
from tl_research.models.backbone import Application, Backbone
from tl_research.models.blocks import find_blocks
from tl_research.models.classifier import build_classifier as put_together
from tl_research.models.classifier import set_trainable
from tl_research.models.head import Linear
from tl_research.models.trainable_plan import TrainablePlan

SHIPPED = sorted(path.stem for path in (ROOT / "conf" / "backbone").glob("*.yaml"))
NETWORKS = [name for name in SHIPPED if name not in ("saved", "custom", "auto", "combined") and "it_" not in name]
TRANSFORMER = "vit_tiny_patch16"  # stands for all: test_vision_transformer.py has what their options change
MODULES = {
    "ResNet50": "resnet",
    "ResNet50V2": "resnet_v2",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "Xception": "xception",
    "DenseNet121": "densenet",
    "EfficientNetB0": "efficientnet",
    "EfficientNetV2B0": "efficientnet_v2",
    "ConvNeXtTiny": "convnext",
    "VGG16": "vgg16",
}
QUICK = ("tiny", "efficientnet_lite0")


def marked(names: Iterable[str]) -> list[Any]:
    """Mark all but the quick networks as slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


each_network = pytest.mark.parametrize("name", marked([*NETWORKS, TRANSFORMER]))


def recipe(name: str, **overrides: object) -> Backbone:
    return compose(
        [f"backbone={name}", "backbone.weights=null", *(f"backbone.{k}={v}" for k, v in overrides.items())]
    ).backbone


def pictures(size: int, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3))
    return np.repeat(np.repeat(coarse, -(-size // 8), 1), -(-size // 8), 2)[:, :size, :size].astype(np.float32)


def smallest(name: str) -> int:
    return max(recipe(name).min_size, 64)


@pytest.mark.parametrize("name", marked(n for n in NETWORKS if n != "tiny" and "lite" not in n))
def test_built_in_preprocessing_equals_the_originals(name: str) -> None:
    import keras

    backbone = recipe(name)
    assert isinstance(backbone, Application)
    model = backbone.build()
    original = getattr(keras.applications, backbone.application)(
        include_top=False, weights=None, input_shape=(backbone.image_size, backbone.image_size, 3), pooling="avg"
    )
    original.set_weights(model.get_weights())
    module = importlib.import_module(f"keras.applications.{MODULES[backbone.application]}")
    pixels = pictures(backbone.image_size)
    expected = np.asarray(original(module.preprocess_input(pixels.copy()), training=False))
    found = np.asarray(model(pixels, training=False))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_every_application_shipped_has_a_preprocessing_test() -> None:
    shipped = [each for each in map(recipe, NETWORKS) if isinstance(each, Application)]
    assert {each.application for each in shipped} == set(MODULES)


@each_network
def test_blocks_hold_each_layer_once_and_cut_no_path(name: str) -> None:
    model = recipe(name, image_size=smallest(name)).build()
    parts = find_blocks(model)
    assert [operation for block in parts for operation in block.operations] == model.operations
    assert len(parts) >= 3
    block_of = {id(operation): number for number, block in enumerate(parts) for operation in block.operations}
    for number, block in enumerate(parts):
        for operation in block.operations[:-1]:
            users = {block_of[id(n.operation)] for n in operation._outbound_nodes if id(n.operation) in block_of}
            assert users <= {number}, f"{operation.name} is used beyond its block"


@each_network
@pytest.mark.slow
def test_a_saved_classifier_predicts_the_same_with_keras_alone(name: str, tmp_path: Path) -> None:
    import keras

    backbone = recipe(name, image_size=smallest(name)).build()
    classifier = put_together(backbone, Linear().build(backbone.output_shape[-1], 3))
    pixels = pictures(backbone.input_shape[1])
    expected = np.asarray(classifier(pixels, training=False))
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(np.asarray(loaded(pixels, training=False)), expected)


@each_network
@pytest.mark.parametrize("unfreeze", [pytest.param(1, marks=pytest.mark.slow), "all"])
def test_training_changes_exactly_what_the_table_lists(name: str, unfreeze: Any) -> None:
    import keras

    keras.utils.set_random_seed(0)
    backbone = recipe(name, image_size=smallest(name)).build()
    classifier = put_together(backbone, Linear().build(backbone.output_shape[-1], 2))
    parts = set_trainable(classifier, unfreeze)
    before = [np.array(w) for w in classifier.get_weights()]
    update(TrainablePlan(classifier, parts), np.stack([pictures(backbone.input_shape[1], 2).astype(np.uint8)] * 2))
    learning = {id(variable) for part in parts for variable in part.learning}
    moved = [not np.array_equal(a, b) for a, b in zip(before, classifier.get_weights(), strict=True)]
    for variable, changed in zip(classifier.weights, moved, strict=True):
        assert not changed or id(variable) in learning, f"{variable.path} was frozen and moved"
    last = {id(variable) for variable in parts[-2].learning}
    assert any(changed and id(v) in last for v, changed in zip(classifier.weights, moved, strict=True))
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert not learning & {id(weight) for layer in norms for weight in layer.weights}


def test_random_weights_depend_on_the_backbones_seed_only() -> None:
    first, again, other = (recipe("tiny", seed=s).build().get_weights() for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_custom_function_is_built_and_a_wrong_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text("from tl_research.models.networks.tiny import Tiny as small\n")
    monkeypatch.chdir(tmp_path)
    experiment = compose(["backbone=custom", "backbone.build=my_networks:small", "backbone.image_size=32"])
    assert experiment.backbone.build().output_shape == (None, 32)
    for wrong in ("my_networks:large", "no_such_module:small", "my_networks"):
        with pytest.raises(InputError, match=r"^backbone.build=.*"):
            compose(["backbone=custom", f"backbone.build={wrong}"]).backbone.preflight()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    pass", "include_top"),
        ("def make(**_):\n    return 3", "int"),
        ("def make(**_):\n    raise KeyError('mine')", "mine"),
        ("import keras as k\ndef make(**_):\n return k.Sequential([k.Input((32, 32, 3)), k.layers.Flatten()])", "3072"),
    ],
)  # fmt: skip
def test_a_custom_function_without_a_feature_map_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    module = f"mine_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    backbone = compose(["backbone=custom", f"backbone.build={module}:make", "backbone.image_size=32"]).backbone
    with pytest.raises(InputError, match=r"^backbone\.build=") as caught:
        backbone.build()
    assert message in str(caught.value)


def test_a_sequential_with_an_input_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import keras\ndef make(input_shape, **_):\n    conv = keras.layers.Conv2D(4, 3, 2)\n"
    (tmp_path / "chain.py").write_text(body + "    return keras.Sequential([keras.Input(input_shape), conv])\n")
    monkeypatch.chdir(tmp_path)
    backbone = compose(["backbone=custom", "backbone.build=chain:make", "backbone.image_size=32"]).backbone
    assert backbone.build().output_shape == (None, 4)


def test_a_saved_network_computes_its_features(tmp_path: Path) -> None:
    source = recipe("tiny", image_size=48).build()
    classifier = put_together(source, Linear().build(32, 2))
    classifier.save(tmp_path / "mine.keras")
    backbone = compose(
        ["backbone=saved", f"backbone.weights={tmp_path / 'mine.keras'}", "backbone.image_size=48"]
    ).backbone.build()
    pixels = pictures(48)
    np.testing.assert_allclose(backbone(pixels), source(pixels), atol=1e-6)


def gray_network(path: Path, shape: tuple[int, ...] = (28, 28, 1)) -> Any:
    """Save a classifier of gray images."""
    import keras

    layers = keras.layers
    reshape = [layers.Reshape((28, 28, 1))] if len(shape) == 2 else []
    body = [*reshape, layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(10)]
    model = keras.Sequential([keras.Input(shape), *body])
    model.save(path)
    return model


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28)])
def test_a_network_for_gray_images_gets_gray_ones(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = gray_network(tmp_path / "digits.h5", shape)
    options = [f"backbone.weights={tmp_path / 'digits.h5'}", "backbone.preprocessing=unit"]
    backbone = compose(["backbone=saved", *options]).backbone.build()
    assert backbone.input_shape == (None, 28, 28, 3)  # the file's own size
    pixels = pictures(28)
    gray = pixels @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    expected = np.asarray(model.get_layer(index=len(shape) == 2)(gray[..., None])).mean((1, 2))
    np.testing.assert_allclose(backbone(pixels), expected, rtol=1e-4, atol=1e-6)


def test_the_table_says_what_is_kept_cut_off_and_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gray_network(tmp_path / "digits.keras")
    compose(["backbone=saved", f"backbone.weights={tmp_path / 'digits.keras'}"]).backbone.build()
    rows = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "28 x 28 x 1 -> 26 x 26 x 3" in rows["kept"]
    assert "flatten" in rows["cut off"]
    assert "conversion to one channel, avg pooling" in rows["added"]


@pytest.mark.parametrize(("channels", "option"), [(4, "unit"), (1, "caffe")])
def test_channels_that_cannot_be_given_are_refused(channels: int, option: str, tmp_path: Path) -> None:
    gray_network(tmp_path / "deep.keras", (28, 28, channels))
    options = [f"backbone.weights={tmp_path / 'deep.keras'}", f"backbone.preprocessing={option}"]
    with pytest.raises(InputError, match="channel"):
        compose(["backbone=saved", *options]).backbone.build()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("k.layers.Lambda(lambda x: x, name='odd')", r"Lambda layer \(odd\)"),
        ("Mine(name='odd')", r"Mine \(odd\)"),
        ("k.layers.Activation(mine)", "function"),
    ],
)
def test_what_predict_could_not_open_again_is_refused(
    layer: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"odd_{abs(hash(layer))}"
    body = [
        "import keras as k",
        "class Mine(k.layers.Layer):\n    def call(self, x):\n        return x * 2",
        "def mine(x):\n    return x * 2",
        "def make(input_shape, **_):",
        f"    return k.Sequential([k.Input(input_shape), k.layers.Conv2D(4, 3), {layer}])",
    ]
    (tmp_path / f"{module}.py").write_text("\n".join(body))
    monkeypatch.chdir(tmp_path)
    backbone = compose(["backbone=custom", f"backbone.build={module}:make", "backbone.image_size=32"]).backbone
    with pytest.raises(InputError, match=rf"^backbone\.build={module}:make holds .*{message}.*refused"):
        backbone.build()


def test_weights_load_from_a_file_unless_they_do_not_fit(tmp_path: Path) -> None:
    source = recipe("tiny", seed=5).build()
    source.save(tmp_path / "good.keras")
    loaded = recipe("tiny", weights=tmp_path / "good.keras").build()
    for a, b in zip(loaded.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match=r"good\.keras"):
        recipe("mobilenet_v2", image_size=32, weights=tmp_path / "good.keras").build()


def imagenet_network(application: str, monkeypatch: pytest.MonkeyPatch, size: int = 64) -> Any:
    """Build the graph that Keras builds for its ImageNet weights, with random ones."""
    import keras

    with monkeypatch.context() as patch:
        patch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: "unused")
        patch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
        options: dict[str, Any] = {"include_top": False, "weights": "imagenet", "input_shape": (size, size, 3)}
        return getattr(keras.applications, application)(**options)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_a_finetuned_efficientnet_keeps_all_its_preprocessing(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    network = imagenet_network("EfficientNetB0", monkeypatch)
    inputs = keras.Input((64, 64, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(network(inputs))
    path = tmp_path / f"finetuned{suffix}"
    save(keras.Model(inputs, keras.layers.Dense(3)(pooled)), path)
    backbone = recipe("efficientnet_b0", weights=path, image_size=64).build()
    expected = np.asarray(network(pictures(64), training=False)).mean((1, 2))
    np.testing.assert_allclose(backbone(pictures(64), training=False), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
def test_preprocessing_in_a_users_file_replaces_ours(scaled: bool, tmp_path: Path) -> None:
    """Without any in the file, ours stays, for then it was done outside of the network."""
    import keras

    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3))
    inputs = keras.Input((64, 64, 3))
    x = network(keras.layers.Rescaling(1 / 255)(inputs) if scaled else inputs)
    keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))).save(tmp_path / "mine.keras")
    backbone = recipe("mobilenet_v2", weights=tmp_path / "mine.keras", image_size=64).build()
    pixels = pictures(64)
    expected = np.asarray(network(pixels / 255 if scaled else pixels / 127.5 - 1, training=False)).mean((1, 2))
    np.testing.assert_allclose(backbone(pixels, training=False), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_keras_own_file_in_another_folder_loads_as_keras_would(name: str, tmp_path: Path) -> None:
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format
    from keras.src.utils import file_utils

    backbone = recipe(name)
    assert isinstance(backbone, Application)
    constructor = getattr(keras.applications, backbone.application)
    network = constructor(include_top=False, weights=None, input_shape=(224, 224, 3))
    path = tmp_path / str(backbone.url).rpartition("/")[2]
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    loaded = compose([f"backbone={name}", f"backbone.weights={path}"]).backbone.build()
    fetch = file_utils.get_file
    try:
        file_utils.get_file = lambda *args, **kwargs: str(path)
        original = constructor(include_top=False, weights="imagenet", input_shape=(224, 224, 3), pooling="avg")
    finally:
        file_utils.get_file = fetch
    module = importlib.import_module(f"keras.applications.{MODULES[backbone.application]}")
    pixels = pictures(224)
    expected = np.asarray(original(module.preprocess_input(pixels.copy()), training=False))
    np.testing.assert_allclose(loaded(pixels, training=False), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("tiny",) and "lite" not in name])
def test_the_url_in_the_yaml_is_the_one_keras_downloads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras.src.utils import file_utils

    class AskedError(Exception):
        pass

    def ask(fname: str, origin: str, **_: object) -> str:
        raise AskedError(origin)

    backbone = recipe(name)
    assert isinstance(backbone, Application)
    monkeypatch.setattr(file_utils, "get_file", ask)
    size = backbone.image_size
    with pytest.raises(AskedError) as asked:
        getattr(keras.applications, backbone.application)(
            include_top=False, weights="imagenet", input_shape=(size, size, 3)
        )
    assert str(asked.value) == backbone.url
