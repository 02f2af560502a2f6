"""The layouts in which Keras keeps weights in HDF5: where each layer's are, and in which order.

Keras 3 files a layer under its class and rank; Keras 1 and 2 under its name, and say in which order. Only what lies in
the file itself is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import h5py
    import keras

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # Keras 3; TensorFlow 2.13
KINDS = {
    "beta": "bias",
    "depthwise_kernel": "kernel",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class Tensor(NamedTuple):
    """One array of a file. `layer` may be shared by several, in the order in which Keras keeps a layer's weights."""

    scope: str  # the model inside the file's model that the layer belongs to
    layer: str
    name: str  # for messages
    kind: str  # kernel, bias, gamma, ...; "" where the file does not say
    shape: tuple[int, ...]
    data: Any  # an array, or an HDF5 dataset that is read when it is needed


def kind(name: str) -> str:
    """What a weight is, by the last part of its name in Keras or torch."""
    last = re.split("[/.]", name)[-1].removesuffix(":0")
    return KINDS.get(last, last)


def snake(name: str) -> str:
    """The name Keras derives from a class: Conv2D -> conv2d, BatchNormalization -> batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def store_paths(layers: Iterable[Any], at: str = "layers") -> Iterator[tuple[str, Any]]:
    """Where Keras 3 keeps each layer in a file: by its class and its rank among those of its class.

    Takes live layers or their configs. A model inside is descended into.
    """
    counts: dict[str, int] = {}
    for layer in layers:
        live = not isinstance(layer, dict)
        name = snake(type(layer).__name__ if live else layer["class_name"])
        counts[name] = counts.get(name, -1) + 1
        path = f"{at}/{name}_{counts[name]}" if counts[name] else f"{at}/{name}"
        inner = getattr(layer, "layers", None) if live else layer["config"].get("layers")
        if isinstance(inner, list):
            yield from store_paths(inner, f"{path}/layers")
        else:
            yield path, layer


def layers_of(model: keras.Model) -> Iterator[keras.Layer]:
    """All layers in the network's order, those of models inside too."""
    for layer in model.layers:
        if isinstance(getattr(layer, "layers", None), list):
            yield from layers_of(layer)
        else:
            yield layer


def finish(model: keras.Model) -> None:
    """To be called after weights were set: Normalization computes with copies of its own."""
    for layer in layers_of(model):
        if layer.weights and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def by_config(file: h5py.File, config: dict[str, Any]) -> Iterator[Tensor]:
    """In the order in which the config lists the layers, with their names."""
    seen = set()
    # An operation such as x / 255 is listed among the layers and is none.
    for path, layer in store_paths(_without_operations(config["config"]["layers"])):
        if path not in seen and f"{path}/vars" in file:
            yield from _vars(_group(file, f"{path}/vars"), path.rpartition("/")[0], layer["config"]["name"])
        seen.add(path)
    for path in _groups_with_vars(file):
        if path not in seen and path.startswith(CONTAINERS):
            yield from _vars(_group(file, f"{path}/vars"), path, path)


def _without_operations(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [layer for layer in layers if not str(layer.get("module")).startswith("keras.src.ops")]
    for layer in kept:
        if isinstance(layer["config"].get("layers"), list):
            layer["config"]["layers"] = _without_operations(layer["config"]["layers"])
    return kept


def unordered(file: h5py.File) -> list[Tensor]:
    """In no order, each under the path of its layer."""
    tensors = []
    for path in _groups_with_vars(file):
        if path.startswith(CONTAINERS):
            layer = "/".join(CONTAINERS[0] if part in CONTAINERS else part for part in path.split("/"))
            tensors += list(_vars(_group(file, f"{path}/vars"), "", layer))
    return tensors


def _groups_with_vars(group: h5py.Group, at: str = "") -> Iterator[str]:
    for name in group:
        # The state of a dropout's random numbers is no weight.
        if name == "vars" and at and not at.endswith("seed_generator"):
            yield at
        elif name != "vars" and _is_group(group, name):
            yield from _groups_with_vars(group[name], f"{at}/{name}" if at else name)


def _vars(group: h5py.Group, scope: str, layer: str) -> Iterator[Tensor]:
    for name in sorted(group, key=lambda key: (len(key), key)):
        data = _dataset(group, name)
        yield Tensor(scope, layer, f"{layer}/{name}", "", data.shape, data)


def legacy(file: h5py.File) -> Iterator[Tensor]:
    """In the file's order. A model inside is one group; its weights' names still tell its layers apart."""
    root = _group(file, "model_weights") if "model_weights" in file else file
    names = _names(root, "layer_names")
    if not names:
        raise ValueError("no layers are listed")
    for group_name in names:
        group = _group(root, group_name)
        layers: dict[str, list[str]] = {}
        for weight in _names(group, "weight_names"):
            layers.setdefault(weight.rpartition("/")[0], []).append(weight)
        for parent, weights in layers.items():
            alone = len(layers) == 1
            scope, layer = ("", group_name) if alone else (group_name, parent.rpartition("/")[2])
            for weight in weights:
                data = _dataset(group, weight)
                yield Tensor(scope, layer, weight, kind(weight), data.shape, data)


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """An attribute that Keras splits into attribute0, attribute1, ... where it is long."""
    numbered = [f"{attribute}{i}" for i in range(len(group.attrs))]
    parts = [group.attrs[key] for key in (attribute, *numbered) if key in group.attrs]
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _is_group(parent: h5py.Group, name: str) -> bool:
    import h5py

    # A link may lead into another file: only what lies in this one is followed.
    return parent.get(name, getclass=True, getlink=True) is h5py.HardLink and isinstance(parent[name], h5py.Group)


def _group(parent: h5py.Group, path: str) -> h5py.Group:
    for part in path.split("/"):
        if not _is_group(parent, part):
            raise ValueError(f"{path} is missing or leads elsewhere")
        parent = parent[part]
    return parent


def _dataset(parent: h5py.Group, path: str) -> h5py.Dataset:
    import h5py

    above, _, name = path.rpartition("/")
    group = _group(parent, above) if above else parent
    link = group.get(name, getclass=True, getlink=True)
    data = group[name] if link is h5py.HardLink else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external or data.dtype.kind not in "fiub":
        raise ValueError(f"{path} is missing, leads elsewhere or holds no numbers")
    return data
