"""Read the tensors of a `torch.save` file without torch and without trusting the file.

Such a file is a pickle, and a pickle may call any function. This reader accepts a closed list of names and replaces
each by a harmless stand-in: a tensor becomes a record of where its numbers are in the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tl_research.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C  # first number in a file of torch before 1.6
PROTOCOL = 1001
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}

Read = Callable[[str], bytes]


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, data: bytes) -> np.ndarray:
        """Copy the numbers out of the storage's bytes; raise ValueError if they would lie outside."""
        flat = np.frombuffer(data, self.storage.dtype)
        if min((self.offset, *self.shape, *self.strides)) < 0 or len(self.shape) != len(self.strides):
            raise ValueError("a tensor has a negative size")
        size = math.prod(self.shape)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if size > len(flat) or (size and last >= len(flat)):
            raise ValueError("a tensor is larger than its storage")
        strides = [step * flat.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False).copy()


# The unpickler in Python: the one in C allocates any table size that a hostile file requests.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        # A new lambda each time: a pickle can set attributes on it, so nothing shared is handed out.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise InputError(f"it asks for {module}.{name}, and only tensors are admitted")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or dtype not in STORAGES.values() or (view and view[0] is not None):
            raise ValueError("a storage of an unknown kind")
        return self.storages.setdefault(key, _Storage(str(key), dtype, int(length)))


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict by name, in the file's order.

    Reads both formats of `torch.save`. Raises InputError if the file is missing, damaged, of another format, or names
    anything but tensors. Nothing that it names is imported or called.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file, path.stat().st_size)
    except InputError as error:
        raise InputError(f"{path} is refused: {error}. Give a file of weights (a state dict) from torch.save") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # hostile bytes raise anything from UnicodeDecodeError to RecursionError
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is not a whole torch weights file ({reason}). Download or install it again") from None


def _read_legacy(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Read five consecutive pickles (magic, protocol, machine, state dict, storage keys), then the storages' bytes."""
    file.seek(0)
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise ValueError("it does not begin as one")
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    unpickler = _Unpickler(file)
    tensors = _tensors(unpickler.load())
    data = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little")
        n_bytes = length * np.dtype(storage.dtype).itemsize
        if length != storage.length or n_bytes > size - file.tell():
            raise ValueError("it ends too early")
        data[storage.key] = file.read(n_bytes)
    return {name: tensor.array(data[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read a zip archive: `data.pkl`, and a member `data/<key>` per storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        # torch does not compress. A compressed member may be an attempt to fill the memory.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed")
        root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") == b"big":
            raise ValueError("it was written on a big-endian machine")
        tensors = _tensors(_Unpickler(io.BytesIO(archive.read(root + "data.pkl"))).load())
        return {name: t.array(archive.read(f"{root}data/{t.storage.key}")) for name, t in tensors.items()}


def _tensors(state: Any) -> dict[str, _Tensor]:
    for key in ("model", "state_dict"):  # where training scripts put it beside what else they save
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor) or not isinstance(value.storage, _Storage):
            raise ValueError(f"{str(name)[:60]!r} is no tensor")
    return state
