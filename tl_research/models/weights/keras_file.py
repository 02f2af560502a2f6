"""Read weights from Keras files as data, without building, importing or calling anything that a file names.

Three formats: HDF5 of Keras 1 and 2 (as `keras.applications` still publishes), HDF5 of Keras 3 (`.weights.h5`), and
`.keras` archives, which contain the latter.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tl_research.errors import InputError
from tl_research.models.weights.keras_layout import CONTAINERS, Tensor, by_config, layer_names, legacy, unordered

HDF5 = b"\x89HDF\r\n\x1a\n"
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"  # in a .keras file


class Contents(NamedTuple):
    """Tensors of a file. `ordered`: in the network's order, which a `.weights.h5` does not record."""

    tensors: list[Tensor]
    ordered: bool


@contextmanager
def contents(path: Path) -> Iterator[Contents]:
    """Open a `.keras` or `.h5` file; raise InputError, naming it, if it is of another kind or damaged."""
    with ExitStack() as stack:
        with reading(path):
            tensors = _contents(path, stack)
        yield tensors


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert whatever a library raises for a damaged file, from KeyError to RuntimeError, to InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        message = f"{path} is damaged or holds no Keras weights ({reason}). Download or save it again"
        raise InputError(message) from None


def _contents(path: Path, stack: ExitStack) -> Contents:
    import h5py

    if is_archive(path):
        file = stack.enter_context(h5py.File(io.BytesIO(read_weights(path)), "r"))
        return Contents(list(by_config(file, read_model(path).config)), ordered=True)
    check_hdf5(path)
    file = stack.enter_context(h5py.File(path, "r"))
    if any(name in file for name in CONTAINERS):
        return Contents(unordered(file), ordered=False)
    return Contents(list(legacy(file)), ordered=True)


def is_archive(path: Path) -> bool:
    """Return whether a file is to be read as a zip archive: it is named `.keras`, and not HDF5, which TensorFlow up to
    2.12 wrote under that name."""
    with opened(path) as file:
        return path.suffix == ".keras" and file.read(8) != HDF5


def count_layers(path: Path, name: str) -> int:
    """Count the layers with this automatic name (`rescaling`, `rescaling_1`) in an HDF5 file of weights, in the model
    or nested model that has the most; layers without weights are listed there, too."""
    import h5py

    if is_archive(path):
        return 0
    with reading(path), h5py.File(path, "r") as file:
        models: list[Sequence[str]] = [layer_names(file)]
        file.visititems(lambda at, group: models.append(list(group)) if at.endswith(CONTAINERS) else None)
    return max(sum(re.fullmatch(rf"{name}(_\d+)?", layer) is not None for layer in layers) for layers in models)


def check_hdf5(path: Path) -> None:
    """Check that a file starts like HDF5; otherwise raise InputError that says what it is instead."""
    with opened(path) as file:
        start = file.read(512)
    if start.startswith(HDF5):
        return
    if not start:
        what = "is empty"
    elif start.lstrip()[:1] == b"<":
        what = "is a web page, not weights: the download went wrong"
    elif start.startswith(b"\x80"):
        what = "is a pickle, which could run code, so it is not read"
    elif start.startswith(b"PK"):
        what = "is a zip archive; a Keras model of that kind is named .keras"
    else:
        what = "is no HDF5 file, or a damaged one"
    raise InputError(f"{path} {what}. Give a file that Keras saved (.weights.h5, .h5, .keras)")


class ModelConfig(NamedTuple):
    """The config of a whole model, and the version of Keras that wrote it ("" in the oldest files)."""

    config: dict[str, Any]
    version: str


def read_model(path: Path) -> ModelConfig:
    """Read the config of a whole model from a `.keras` or `.h5` file, without its training settings. Raises InputError
    if the file holds none."""
    import h5py

    with reading(path):
        if is_archive(path):
            text, version = _member(path, CONFIG), json.loads(_member(path, METADATA)).get("keras_version")
        else:
            check_hdf5(path)
            with h5py.File(path, "r") as file:
                text, version = (file.attrs.get(key) for key in ("model_config", "keras_version"))
        if text is None:
            raise InputError(f"{path} holds weights without a model. Give a whole model from model.save")
        config = _without_training(json.loads(text))
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no description of a model. Save it again with model.save")
    return ModelConfig(config, version.decode() if isinstance(version, bytes) else str(version or ""))


def _without_training(config: Any) -> Any:
    """Remove compile settings (optimizers, losses) of a model and its nested models from a config."""
    if isinstance(config, dict):
        return {key: _without_training(value) for key, value in config.items() if key != "compile_config"}
    if isinstance(config, list):
        return [_without_training(value) for value in config]
    return config


def read_weights(path: Path) -> bytes:
    """Read the HDF5 file inside a `.keras` file."""
    with reading(path):
        return _member(path, WEIGHTS)


def _member(path: Path, name: str) -> bytes:
    with opened(path) as file:
        if not zipfile.is_zipfile(file):
            raise InputError(f"{path} is no .keras file, or a damaged one. Save it again with model.save")
        with zipfile.ZipFile(file) as archive:
            if name not in archive.namelist():
                raise InputError(f"{path} lacks {name}: it is no Keras model. Save it again with model.save")
            info = archive.getinfo(name)
            # Keras does not compress. A member that grows a hundredfold is an attempt to fill the memory.
            if info.file_size > 100 * max(info.compress_size, 1):
                raise InputError(
                    f"{path}: its {name} grows from {info.compress_size} to {info.file_size} bytes: refused"
                )
            return archive.read(name)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file; raise InputError if it cannot be opened."""
    if path.is_dir():
        raise InputError(f"{path} is a directory. Give the file of weights inside")
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Give the path of a weights file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
