import h5py
import numpy as np
import pytest

from tests.models.test_keras_file import SUFFIXES, refusal
from tests.models.test_weights import answers, fill, save, small
from tl_research.models import weights
from tl_research.models.weights import keras_layout


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/layers/conv2d/vars/0"), h5py.SoftLink("/secret")])
def test_links_out_of_the_file_are_not_followed(tmp_path, link):
    save(fill(small()), tmp_path / "other.h5.weights.h5").rename(tmp_path / "other.h5")
    path = save(fill(small()), tmp_path / "file.weights.h5")
    with h5py.File(path, "a") as file:
        file["secret"] = file["layers/conv2d/vars/0"][()]
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = link
    assert "leads elsewhere" in refusal(path)


def test_a_layer_in_another_file_is_not_followed(tmp_path):
    save(fill(small()), tmp_path / "other.weights.h5")
    path = save(fill(small()), tmp_path / "file.weights.h5")
    with h5py.File(path, "a") as file:
        del file["layers/conv2d"]
        file["layers/conv2d"] = h5py.ExternalLink("other.weights.h5", "/layers/conv2d")
    assert "holds nothing for conv2d" in refusal(path)


def test_numbers_in_another_file_are_not_read(tmp_path):
    path = save(fill(small()), tmp_path / "file.weights.h5")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3 * 3 * 3 * 4 * 4))
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/0"]
        outside = [(str(secret), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), np.float32, external=outside)
    assert "leads elsewhere" in refusal(path)


def keras2(path, layers, split=False):
    """Write HDF5 as Keras 2 did: names end in :0, and long lists of names are split over several attributes."""
    with h5py.File(path, "w") as file:
        names = [layer.encode() for layer, _ in layers]
        parts = {"layer_names": names} if not split else {"layer_names0": names[:2], "layer_names1": names[2:]}
        file.attrs.update(parts)
        for layer, arrays in layers:
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, value in arrays.items():
                group[name] = value


@pytest.mark.parametrize("split", [False, True])
def test_a_file_of_keras_2_is_read(tmp_path, split):
    source = fill(small())
    old = {"moving_mean": "moving_mean", "moving_variance": "moving_variance"}
    layers = []
    for layer in source.layers:
        name = {"conv2d": "conv2d_93", "conv2d_1": "conv2d_94"}.get(layer.name, layer.name)
        # TensorFlow 1 numbered scopes independently: the group conv2d_93 may contain conv2d_93_7/kernel:0.
        arrays = {}
        for variable in layer.weights:
            own = "depthwise_kernel" if layer.name == "first_depthwise" and variable.name == "kernel" else variable.name
            arrays[f"{name}_7/{old.get(own, own)}:0"] = variable.numpy()
        layers.append((name, arrays))
    keras2(tmp_path / "file.h5", layers, split)
    target = small()
    assert weights.load_file(target, tmp_path / "file.h5") == []
    np.testing.assert_array_equal(answers(target), answers(source))


def test_a_file_of_tensorflow_2_13_is_read(tmp_path):
    source = fill(small())
    path = save(source, tmp_path / "file.weights.h5")
    with h5py.File(path, "a") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    target = small()
    assert weights.load_file(target, path) == []
    np.testing.assert_array_equal(answers(target), answers(source))


def test_class_names_become_paths_as_in_keras():
    from keras.src.utils.naming import to_snake_case

    for name in ("Conv2D", "BatchNormalization", "SeparableConv2D", "LayerScale", "DepthwiseConv2D", "ReLU", "Dense"):
        assert keras_layout.snake(name) == to_snake_case(name)


def test_dropout_states_are_no_weights(tmp_path):
    import keras

    layers = keras.layers
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, layers.Dropout(0.5)(layers.Conv2D(2, 3)(image)))
    for suffix in SUFFIXES:
        path = save(network, tmp_path / f"file{suffix}")
        if suffix == ".weights.h5":  # as some versions of Keras 3 did
            with h5py.File(path, "a") as file:
                file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        assert weights.load_file(network, path) == []


def test_the_optimizer_in_a_file_is_no_weight_of_the_network(tmp_path):
    source = fill(small())
    source.compile("adam", "mse")
    source.fit(np.zeros((2, 16, 16, 3)), np.zeros((2, *source.output_shape[1:])), verbose=0)
    for suffix in SUFFIXES:
        assert weights.load_file(small(), save(source, tmp_path / f"file{suffix}")) == []
