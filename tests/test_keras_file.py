import contextlib
import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from tests.test_weights import answers, fill, save, small
from tl_research import keras_file, weights
from tl_research.errors import InputError

SUFFIXES = (".weights.h5", ".h5", ".keras")


def refusal(path):
    with pytest.raises(InputError) as caught:
        weights.load_file(small(), path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", bytes(2000)])
def test_what_is_no_keras_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    refusal(path)


def test_the_reason_tells_what_the_file_is_instead(tmp_path):
    path = tmp_path / "file.h5"
    for content, word in [
        (b"", "empty"),
        (b"\n <html>", "web page"),
        (pickle.dumps({}), "pickle"),
        (b"PK", "zip archive"),
    ]:
        path.write_bytes(content)
        assert word in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_path_and_a_directory_are_told(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    assert "does not exist" in refusal(path)
    path.mkdir()
    assert "is a directory" in refusal(path)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_is_not_run(tmp_path, suffix):
    path, ran = tmp_path / f"file{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(ran)))
    refusal(path)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = save(fill(small()), tmp_path / f"file{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_never_ends_in_anything_but_an_input_error(tmp_path, suffix):
    whole = save(fill(small()), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"file{suffix}"
    rng = np.random.default_rng(0)
    model = small()
    for _ in range(60):
        damaged = bytearray(whole)
        start = int(rng.integers(8, len(whole) - 64))
        damaged[start : start + 64] = rng.bytes(64)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):  # the damage may lie where nothing is read: then it loads
            weights.load_file(model, path)


def test_a_file_without_weights_is_refused(tmp_path):
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["data"] = np.zeros(3)
    assert "no Keras weights" in refusal(tmp_path / "file.h5")


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/layers/conv2d/vars/0"), h5py.SoftLink("/secret")])
def test_links_out_of_the_file_are_not_followed(tmp_path, link):
    save(fill(small()), tmp_path / "other.h5.weights.h5").rename(tmp_path / "other.h5")
    path = save(fill(small()), tmp_path / "file.weights.h5")
    with h5py.File(path, "a") as file:
        file["secret"] = file["layers/conv2d/vars/0"][()]
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = link
    assert "leads elsewhere" in refusal(path)


def test_numbers_kept_in_another_file_are_not_read(tmp_path):
    path = save(fill(small()), tmp_path / "file.weights.h5")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3 * 3 * 3 * 4 * 4))
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/0"]
        outside = [(str(secret), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), np.float32, external=outside)
    assert "leads elsewhere" in refusal(path)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "file.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(10**7))
    assert "refused" in refusal(path)


@pytest.mark.parametrize("config", ["[]", "{}", "nonsense", '{"config": {"layers": [{}]}}'])
def test_an_archive_with_a_nonsensical_config_is_refused(tmp_path, config):
    whole = save(fill(small()), tmp_path / "whole.keras")
    path = tmp_path / "file.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        target.writestr("config.json", config)
        target.writestr("model.weights.h5", source.read("model.weights.h5"))
    refusal(path)


def test_an_archive_without_weights_is_refused(tmp_path):
    path = tmp_path / "file.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "module": "keras", "config": {}}))
    refusal(path)


def keras2(path, layers, split=False):
    """Writes HDF5 as Keras 2 did: names end in :0, and the names of a long list are split over several attributes."""
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
        # TensorFlow 1 counted scopes by itself: the group conv2d_93 may hold conv2d_93_7/kernel:0.
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
        assert keras_file.snake(name) == to_snake_case(name)


def test_dropout_states_are_no_weights(tmp_path):
    import keras

    layers = keras.layers
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, layers.Dropout(0.5)(layers.Conv2D(2, 3)(image)))
    for suffix in SUFFIXES:
        assert weights.load_file(network, save(network, tmp_path / f"file{suffix}")) == []


def test_the_optimizer_in_a_file_is_no_weight_of_the_network(tmp_path):
    source = fill(small())
    source.compile("adam", "mse")
    source.fit(np.zeros((2, 16, 16, 3)), np.zeros((2, *source.output_shape[1:])), verbose=0)
    for suffix in SUFFIXES:
        assert weights.load_file(small(), save(source, tmp_path / f"file{suffix}")) == []
