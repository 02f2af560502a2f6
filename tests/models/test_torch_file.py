import io
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from tl_research.errors import InputError
from tl_research.models.weights.torch_file import MAGIC, PROTOCOL, read_torch

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.bias": np.array([0.5, -1.0], np.float64),
    "bn.num_batches_tracked": np.array(7, np.int64),
}
KINDS = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float64): "DoubleStorage", np.dtype(np.int64): "LongStorage"}


class Global:
    """Pickled as a name in a module that need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a Global."""

    def __init__(self, what, *arguments):
        self.what, self.arguments = what, arguments


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Pickler(pickle._Pickler):
    """Write the same bytes as torch, without torch."""

    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", Global("torch", KINDS[value.array.dtype]), value.key, "cpu", value.array.size, None)[
                : self.n
            ]
        return None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.what)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def pickled(value, fields=6):
    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.n = fields
    pickler.dump(value)
    return file.getvalue()


def tensor(key, array, shape=None, strides=None, offset=0):
    shape = array.shape if shape is None else shape
    strides = [s // array.itemsize for s in array.strides] if strides is None else strides
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, Storage(key, array), offset, tuple(shape), tuple(strides), False, OrderedDict())


def tensors(state):
    return OrderedDict((name, tensor(str(i), array)) for i, (name, array) in enumerate(state.items()))


def legacy(state, values):
    keys = [str(i) for i in range(len(values))]
    data = b"".join(v.size.to_bytes(8, "little") + v.tobytes() for v in values)
    start = [MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True}]
    return b"".join(pickle.dumps(value, 2) for value in start) + pickled(state) + pickle.dumps(keys, 2) + data


def zipped(state, values):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled(state, 5))
        archive.writestr("m/byteorder", "little")
        for i, value in enumerate(values):
            archive.writestr(f"m/data/{i}", value.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("write", [legacy, zipped])
def test_both_formats_are_read_in_order(tmp_path, write, key):
    path, state = tmp_path / "m.pth", tensors(STATE)
    path.write_bytes(write({key: state} if key else state, list(STATE.values())))
    found = read_torch(path)
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_views_of_one_storage_are_read_by_their_strides(tmp_path):
    array = np.arange(6, dtype=np.float32)
    state = {"a": tensor("0", array, (2, 3), (1, 2)), "b": tensor("0", array, (2,), (1,), offset=4)}
    (tmp_path / "m.pth").write_bytes(legacy(state, [array]))
    found = read_torch(tmp_path / "m.pth")
    assert found["a"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert found["b"].tolist() == [4, 5]


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.nn.modules.conv.Conv2d", "collections.Counter"])
def test_only_tensors_are_accepted_and_nothing_is_executed(tmp_path, write, name):
    ran = tmp_path / "ran"
    module, _, function = name.rpartition(".")
    state = {"w": Call(Global(module, function), f"touch {ran}")}
    (tmp_path / "m.pth").write_bytes(write(state, []))
    with pytest.raises(InputError, match="asks for") as caught:
        read_torch(tmp_path / "m.pth")
    assert name in str(caught.value)
    assert str(tmp_path / "m.pth") in str(caught.value)
    assert not ran.exists()


def test_unpickling_the_payload_would_execute_it(tmp_path):
    ran = tmp_path / "ran"
    pickle.loads(pickled({"w": Call(Global("os", "system"), f"touch {ran}")}))  # noqa: S301 - the proof above needs it
    assert ran.exists()


def test_modules_named_by_a_pickle_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "m.pth").write_bytes(legacy({"w": Global("trap_module", "x")}, []))
    with pytest.raises(InputError, match=r"trap_module\.x"):
        read_torch(tmp_path / "m.pth")
    assert "trap_module" not in sys.modules


def test_a_pickle_cannot_modify_the_reader(tmp_path):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    # BUILD with the state (None, {...}) sets attributes of the object on the stack, here a function.
    attack = pickled(rebuild)[:-1] + pickled((None, {"__defaults__": (1,)}))[2:-1] + pickle.BUILD + pickle.STOP
    start = [MAGIC, PROTOCOL, {"little_endian": True}]
    (tmp_path / "a.pth").write_bytes(b"".join(pickle.dumps(value, 2) for value in start) + attack)
    with pytest.raises(InputError):
        read_torch(tmp_path / "a.pth")
    test_both_formats_are_read_in_order(tmp_path, legacy, None)


BROKEN = {
    "a negative offset": tensor("0", STATE["bn.bias"], offset=-1),
    "a shape beyond the storage": tensor("0", STATE["bn.bias"], (1000,)),
    "strides beyond the storage": tensor("0", STATE["bn.bias"], (2,), (1000,)),
    "many times one number": tensor("0", STATE["bn.bias"], (10**12,), (0,)),
    "no tensor": "text",
    "a list": [1, 2],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, what):
    (tmp_path / "m.pth").write_bytes(legacy({"w": BROKEN[what]}, [STATE["bn.bias"]]))
    with pytest.raises(InputError, match="not a whole torch weights file"):
        read_torch(tmp_path / "m.pth")


@pytest.mark.parametrize("keep", [0, 5, 40, 300, 0.5, 0.99, -1])
@pytest.mark.parametrize("write", [legacy, zipped])
def test_a_truncated_torch_file_is_refused(tmp_path, keep, write):
    whole = write(tensors(STATE), list(STATE.values()))
    path = tmp_path / "m.pth"
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"\x89HDF\r\n\x1a\n", bytes(1000), pickle.dumps({"a": 1})])
def test_other_files_than_torch_files_are_refused(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.pth"):
        read_torch(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        read_torch(tmp_path / name)


def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.pth").write_bytes(legacy(tensors(STATE), list(STATE.values())))
    assert list(read_torch("~/m.pth")) == list(STATE)
