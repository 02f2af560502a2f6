import json
import sys
import zipfile

import h5py
import numpy as np
import pytest

from tests.models.test_weights import (
    answers,
    fill,
    flat,
    head,
    nested,
    nested_with_model_head,
    save,
    sequential,
    small,
)
from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.weights.saved_model import feature_extractor, load_model

SHAPES = [flat, sequential, nested, nested_with_model_head]


def refusal(path):
    """Return the error message of both loading functions."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    if path.suffix == ".keras":
        with pytest.raises(InputError) as caught:
            weights.load_file(small(), path)
        assert str(caught.value) == message
    return message


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("classifier", [flat, sequential, nested_with_model_head])
def test_a_loaded_model_predicts_as_before(tmp_path, suffix, classifier):
    source = classifier(fill(small()))
    source.compile("adam", "mse")
    loaded = load_model(save(source, tmp_path / f"model{suffix}"))
    assert not loaded.compiled
    np.testing.assert_array_equal(answers(loaded), answers(source))


@pytest.mark.parametrize("classifier", SHAPES)
def test_features_equal_those_before_the_head(classifier):
    network = fill(small())
    features = feature_extractor(classifier(network))
    np.testing.assert_array_equal(answers(features), answers(network))


@pytest.mark.parametrize("classifier", SHAPES)
def test_features_are_computed_by_one_flat_graph(classifier):
    import keras

    features = feature_extractor(classifier(fill(small())))
    kinds = [type(operation).__name__ for operation in features.operations if "Divide" not in type(operation).__name__]
    expected = "InputLayer Rescaling Normalization Conv2D BatchNormalization DepthwiseConv2D Conv2D Add"
    assert kinds == expected.split()
    # Each layer is called once, so its output belongs to the graph.
    for layer in features.layers:
        keras.Model(features.input, layer.output)


def test_the_extractor_is_a_copy():
    network = fill(small())
    features = feature_extractor(flat(network))
    before = answers(network)
    features.set_weights([np.zeros(w.shape) for w in features.get_weights()])
    np.testing.assert_array_equal(answers(network), before)


def test_the_image_may_have_another_size():
    network = fill(small())
    features = feature_extractor(flat(network), size=24)
    assert features.input_shape == (None, 24, 24, 3)
    assert features.output_shape == (None, 9, 9, 4)
    for actual, expected_weights in zip(features.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected_weights)


def test_a_size_too_small_for_the_network_is_refused():
    with pytest.raises(InputError, match="cannot be cut down"):
        feature_extractor(flat(small()), size=3)


def test_a_map_pooled_to_one_pixel_is_no_feature_map():
    """MobileNet's classifier keeps four dimensions after pooling; old ResNets pooled with a window."""
    import keras

    layers = keras.layers
    network = fill(small())
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(network.output)
    mobilenet = keras.Model(network.input, layers.Flatten()(layers.Conv2D(3, 1)(layers.Dropout(0.1)(pooled))))
    resnet = keras.Model(network.input, layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(5)(network.output))))
    for classifier in (mobilenet, resnet):
        np.testing.assert_array_equal(answers(feature_extractor(classifier)), answers(network))


def test_dropout_after_the_features_is_cut_off():
    import keras

    network = fill(small())
    dropped = keras.layers.SpatialDropout2D(0.5)(network.output)
    features = feature_extractor(keras.Model(network.input, head(dropped)))
    assert type(features.operations[-1]).__name__ == "Add"


def test_a_model_without_a_feature_map_is_refused():
    import keras

    with pytest.raises(InputError, match="no feature map"):
        feature_extractor(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="table"))
    with pytest.raises(InputError, match="no feature map"):
        feature_extractor(keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]))


def test_unsuitable_models_are_refused():
    import keras

    class Mine(keras.Model):
        def call(self, x):
            return x

    one, two = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    models = [
        keras.Model([one, two], keras.layers.Add()([one, two])),
        Mine(),
        keras.Sequential([keras.layers.Dense(2)]),
    ]
    for model in models:
        with pytest.raises(InputError, match=f"the model {model.name}"):
            feature_extractor(model)


# Refusals


def edited(source, path, change):
    """Copy a .keras file with a changed config."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        config = json.loads(old.read("config.json"))
        change(config)
        for name in old.namelist():
            new.writestr(name, json.dumps(config) if name == "config.json" else old.read(name))
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_lambda_is_refused_and_not_executed(tmp_path, suffix, deep):
    import keras

    ran = tmp_path / "ran"
    function = eval(f"lambda x: (open({str(ran)!r}, 'w').close(), x)[1]")
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.Lambda(function, output_shape=(16, 16, 3))(image))
    if deep:
        again = keras.Input((16, 16, 3))
        model = keras.Model(again, model(again))
    path = save(model, tmp_path / f"model{suffix}")
    answers(model)
    ran.unlink()  # executing the function leaves this file
    message = refusal(path)
    assert "Lambda" in message
    assert not ran.exists()


def test_a_custom_class_is_refused_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_layers.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    def change(config):
        layer = config["config"]["layers"][1]
        layer.update(module="trap_layers", class_name="Trap", registered_name="trap>Trap")

    path = edited(save(small(), tmp_path / "whole.keras"), tmp_path / "model.keras", change)
    assert "trap_layers.Trap" in refusal(path)
    assert "trap_layers" not in sys.modules


UNSAFE = [
    ("keras.utils", "get_file"),
    ("keras.src.utils.file_utils", "get_file"),
    ("keras.layers", "TFSMLayer"),
    ("keras.src.export.tfsm_layer", "TFSMLayer"),
    ("keras.layers", "TorchModuleWrapper"),
    ("keras.layers", "StringLookup"),
    ("keras.src.layers.core.lambda_layer", "Lambda"),
    ("keras.callbacks", "CSVLogger"),
    ("keras.layers.os", "system"),
    ("builtins", "eval"),
    ("os", "system"),
    (None, "system"),
    (7, "Conv2D"),
]


@pytest.mark.parametrize(("module", "name"), UNSAFE)
def test_classes_foreign_to_image_networks_are_refused(tmp_path, module, name):
    def change(config):
        config["config"]["layers"][1].update(module=module, class_name=name, config={})

    path = edited(save(small(), tmp_path / "whole.keras"), tmp_path / "model.keras", change)
    assert name in refusal(path)


@pytest.mark.parametrize(
    ("module", "function"), [("keras.utils", "get_file"), ("builtins", "get_file"), ("os", "system")]
)
def test_functions_other_than_activations_are_refused(tmp_path, module, function):
    def change(config):
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv2D")
        layer["config"]["activation"] = {
            "module": module,
            "class_name": "function",
            "config": function,
            "registered_name": function,
        }

    path = edited(save(small(), tmp_path / "whole.keras"), tmp_path / "model.keras", change)
    assert "function" in refusal(path)


def test_compile_settings_of_nested_models_are_ignored(tmp_path):
    def change(config):
        inside = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Functional")
        inside["compile_config"] = {"optimizer": {"module": "os", "class_name": "system", "config": {}}, "loss": "mse"}

    source = nested(fill(small()))
    path = edited(save(source, tmp_path / "whole.keras"), tmp_path / "model.keras", change)
    np.testing.assert_array_equal(answers(load_model(path)), answers(source))
    assert len(weights.load_file(small(), path)) == 2


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path):
    def change(config):
        next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv2D")["config"]["filters"] = 9

    path = edited(save(small(), tmp_path / "whole.keras"), tmp_path / "model.keras", change)
    with pytest.raises(InputError, match="cannot be rebuilt"):
        load_model(path)


def test_weights_without_a_model_are_refused(tmp_path):
    for suffix in (".weights.h5", "_old.h5"):
        path = tmp_path / f"w{suffix}"
        save(small(), tmp_path / "w.weights.h5")
        if suffix == "_old.h5":
            with h5py.File(path, "w") as file:
                file.attrs["layer_names"] = [b"conv"]
        with pytest.raises(InputError, match="weights without a model"):
            load_model(path)


@pytest.mark.parametrize("name", ["model.pkl", "model", "absent.keras", "absent.h5"])
def test_a_path_that_is_no_model_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=name):
        load_model(tmp_path / name)
