import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.weights.saved_model import feature_extractor, load_model

MODELS = Path(__file__).parents[1] / "fixtures" / "keras2" / "keras2.zip"
NAMES = [name for name in zipfile.ZipFile(MODELS).namelist() if name != "answers.npz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("keras2")
    zipfile.ZipFile(MODELS).extractall(root)
    return root


def edit(path, change):
    """Change the config in an `.h5` file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change({layer["class_name"]: layer for layer in config["config"]["layers"]})
        file.attrs["model_config"] = json.dumps(config)


def image(model, name):
    """Draw the picture of which `make.py` recorded the answer."""
    pixels = np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])).astype("float32")
    return pixels if name in ("tutorial", "operators") else pixels * (1 / 255)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_keras_2_answers_as_it_did_there(folder, name):
    model = load_model(folder / name)
    stem = Path(name).stem
    expected = np.load(folder / "answers.npz")[stem]
    np.testing.assert_allclose(model(image(model, stem)), expected, rtol=1e-5, atol=1e-6)
    assert len(feature_extractor(model).output_shape) == 4


@pytest.mark.parametrize("name", ["2.15/tutorial.keras", "2.13/tutorial.keras", "2.12/tutorial.keras"])
def test_weights_alone_come_from_a_classifier_of_keras_2(folder, name):
    """The network is a backbone of Keras 3 here; only the head's two tensors are left over."""
    import keras

    model = load_model(folder / name)
    body = keras.Model(model.get_layer("zero_padding2d_1").input, model.get_layer("add_1").output, name="mobile")
    expected = body.get_weights()
    body.set_weights([np.zeros_like(value) for value in expected])
    assert len(weights.load_file(body, folder / name)) == 2
    for value, wanted in zip(body.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("TFOpLambda", {"function": "io.read_file"}, "calls tf.io.read_file"),
        ("Conv2D", {"renorm": True}, "does not have renorm=True of its layer conv2d"),
        ("Conv2D", {"use_bias": False}, "the weights of its layer conv2d"),
    ],
)
def test_what_keras_3_cannot_compute_is_refused_naming_it(folder, tmp_path, kind, change, message):
    path = tmp_path / "model.h5"
    path.write_bytes((folder / "2.15/operators.h5").read_bytes())
    edit(path, lambda layers: layers[kind]["config"].update(change))
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
