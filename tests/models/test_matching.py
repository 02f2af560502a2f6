"""Test matching of tensors by name and by order, and what is no match."""

from pathlib import Path

import numpy as np
import pytest

from tests.models.test_weights import fill, save, small
from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.weights.keras_layout import Tensor
from tl_research.models.weights.matching import match

PATH = Path("file.h5")


def stored(*layers):
    """Make tensors from (layer, {kind: shape})."""
    return [
        Tensor("", layer, f"{layer}/{kind}", kind, shape, np.zeros(shape))
        for layer, kinds in layers
        for kind, shape in kinds.items()
    ]


BN = {"gamma": (4,), "bias": (4,), "moving_mean": (4,), "moving_variance": (4,)}
CONV = {"kernel": (3, 3, 3, 4), "bias": (4,)}
LAST = {"kernel": (1, 1, 4, 4), "bias": (4,)}
HEAD = {"kernel": (4, 2), "bias": (2,)}


def network(*names):
    """Build conv -> bn -> conv with the given names."""
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name=names[0])(image)
    x = keras.layers.BatchNormalization(name=names[1])(x)
    return keras.Model(image, keras.layers.Conv2D(4, 1, name=names[2])(x), name="net")


def names(tensors):
    return [tensor.name for tensor in tensors]


def test_layers_are_found_by_name_in_another_order():
    tensors = stored(("b", LAST), ("a", CONV), ("n", BN))
    found, left = match(network("a", "n", "b"), tensors, PATH)
    assert names(found) == ["a/kernel", "a/bias", *(f"n/{kind}" for kind in BN), "b/kernel", "b/bias"]
    assert left == []


def test_within_a_layer_tensors_are_found_by_kind():
    turned = dict(reversed(BN.items()))
    found, _ = match(network("a", "n", "b"), stored(("a", CONV), ("n", turned), ("b", LAST)), PATH)
    assert names(found)[2:6] == [f"n/{kind}" for kind in BN]


def test_unknown_names_are_matched_by_order():
    found, left = match(network("a", "n", "b"), stored(("x", CONV), ("y", BN), ("z", LAST), ("head", HEAD)), PATH)
    assert names(found)[::6] == ["x/kernel", "z/kernel"]
    assert names(left) == ["head/kernel", "head/bias"]


@pytest.mark.parametrize("first", [0, 1, 93])
def test_automatic_names_are_matched_by_rank(first):
    """Names overlap by chance: conv2d_1 is the network's second layer and the file's first."""
    model = network("conv2d", "n", "conv2d_1")
    file_names = [f"conv2d_{first + i}" if first + i else "conv2d" for i in range(3)]
    tensors = stored((file_names[0], CONV), ("n", BN), (file_names[1], LAST), (file_names[2], LAST))
    found, left = match(model, tensors, PATH)
    assert names(found)[0] == f"{file_names[0]}/kernel"
    assert names(found)[6] == f"{file_names[1]}/kernel"
    assert names(left) == [f"{file_names[2]}/kernel", f"{file_names[2]}/bias"]


def refused(tensors, model=None):
    with pytest.raises(InputError, match=r"^file\.h5 does not fit net: ") as caught:
        match(model or network("a", "n", "b"), tensors, PATH)
    return str(caught.value)


def test_a_shape_mismatch_names_both_and_the_number_left_over():
    other = {"kernel": (3, 3, 3, 5), "bias": (5,)}
    message = refused(stored(("a", other), ("n", BN), ("b", LAST)))
    assert "its a/kernel (3, 3, 3, 5) stands where a/kernel (3, 3, 3, 4) belongs, 8 left over" in message


def test_another_kind_of_the_same_shape_is_no_match():
    message = refused(stored(("x", CONV), ("y", dict(reversed(BN.items()))), ("z", LAST)))
    assert "y/moving_variance (4,) stands where n/gamma (4,) belongs" in message


def test_a_short_file_names_the_first_weight_without_a_tensor():
    assert "holds nothing for b/kernel (1, 1, 4, 4)" in refused(stored(("a", CONV), ("n", BN)))
    assert "holds nothing for b/bias (4,)" in refused(stored(("a", CONV), ("n", BN), ("b", {"kernel": (1, 1, 4, 4)})))


@pytest.mark.parametrize("where", [0, 1, 2])
def test_tensors_before_or_between_are_no_head(where):
    layers = [("a", CONV), ("n", BN), ("b", LAST)]
    layers.insert(where, ("scale", {"gamma": (3,)}))
    assert "scale/gamma (3,)" in refused(stored(*layers))


def test_a_layer_with_more_weights_than_ours_is_refused():
    message = refused(stored(("a", CONV | {"extra": (2,)}), ("n", BN), ("b", LAST)))
    assert "a/extra (2,)" in message


def inside(scope, tensors):
    return [tensor._replace(scope=scope, name=f"{scope}/{tensor.name}") for tensor in tensors]


def test_layers_of_one_name_in_two_models_are_not_mixed_up():
    layers = ("a", CONV), ("n", BN), ("b", LAST)
    found, left = match(network("a", "n", "b"), inside("one", stored(*layers)) + inside("two", stored(*layers)), PATH)
    assert {name[:3] for name in names(found)} == {"one"}
    assert {name[:3] for name in names(left)} == {"two"}


def test_ranks_of_automatic_names_are_counted_per_model():
    """The conv2d before the nested model is the file's first, and not the network's."""
    before = stored(("conv2d", CONV))
    model = network("conv2d_7", "n", "conv2d_8")
    network_inside = inside("net", stored(("conv2d_1", CONV), ("n", BN), ("conv2d_2", LAST)))
    assert "left over are conv2d/kernel" in refused(before + network_inside, model)
    found, _ = match(model, network_inside + before, PATH)
    assert names(found)[0] == "net/conv2d_1/kernel"


def test_order_decides_if_some_names_are_missing():
    tensors = stored(("b", CONV), ("n", BN), ("a", LAST))
    found, _ = match(network("a", "n", "b"), tensors, PATH)
    assert names(found)[0] == "b/kernel"


def wrapped(network, before):
    """Build a layer with weights before the network, which is no head."""
    import keras

    image = keras.Input((16, 16, 3))
    return keras.Model(image, keras.layers.Flatten()(network(before(image))))


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_weights_before_a_nested_network_are_no_head(tmp_path, suffix):
    import keras

    for before in (keras.layers.Conv2D(3, 1), keras.layers.Normalization()):
        path = save(wrapped(fill(small()), before), tmp_path / f"file{suffix}")
        with pytest.raises(InputError, match=rf"left over|{before.name}"):
            weights.load_file(small(), path)


def test_a_second_network_in_a_file_without_order_is_no_head(tmp_path):
    import keras

    image = keras.Input((16, 16, 3))
    both = keras.layers.Concatenate()([fill(small("one"))(image), fill(small("two"))(image)])
    path = save(keras.Model(image, both), tmp_path / "file.weights.h5")
    with pytest.raises(InputError, match="no head"):
        weights.load_file(small(), path)


def test_a_network_and_a_file_without_weights_are_refused(tmp_path):
    import keras

    path = save(keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()]), tmp_path / "file.weights.h5")
    with pytest.raises(InputError, match="holds no weights"):
        weights.load_file(small(), path)
