import contextlib
import json
import pickle
import sys
import zipfile

import h5py
import numpy as np
import pytest

from tests.models.test_weights import fill, save, small
from tl_research.errors import InputError
from tl_research.models import weights

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
def test_other_files_than_keras_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    refusal(path)


def test_the_error_says_what_the_file_is_instead(tmp_path):
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
def test_a_missing_path_and_a_directory_are_refused(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    assert "does not exist" in refusal(path)
    path.mkdir()
    assert "is a directory" in refusal(path)


class Payload:
    """Create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_is_not_executed(tmp_path, suffix):
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
def test_a_damaged_file_raises_only_input_errors(tmp_path, suffix):
    whole = save(fill(small()), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"file{suffix}"
    rng = np.random.default_rng(0)
    model = small()
    for _ in range(60):
        damaged = bytearray(whole)
        start = int(rng.integers(8, len(whole) - 64))
        damaged[start : start + 64] = rng.bytes(64)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):  # it loads if the damage is where nothing is read
            weights.load_file(model, path)


def test_a_file_without_weights_is_refused(tmp_path):
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["data"] = np.zeros(3)
    assert "no layers are listed" in refusal(tmp_path / "file.h5")


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


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["code", "cut", "Lambda", None])
def test_a_file_is_checked_without_building_anything(tmp_path, suffix, damage, monkeypatch):
    import keras

    path, ran = tmp_path / f"file{suffix}", tmp_path / "ran"
    model = small()
    if damage == "Lambda":
        model = keras.Model(model.input, keras.layers.Lambda(lambda x: x, name="odd")(model.output))
    save(model, path)
    if damage == "code":
        path.write_bytes(pickle.dumps(Payload(ran)))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    whole = not path.name.endswith(".weights.h5")
    monkeypatch.setitem(sys.modules, "keras", None)
    harmless = damage is None or (damage == "Lambda" and not whole)  # weights alone hold no code
    with contextlib.nullcontext() if harmless else pytest.raises(InputError, match=str(path)):
        weights.check_file(path, whole_model=whole)
    assert not ran.exists()
