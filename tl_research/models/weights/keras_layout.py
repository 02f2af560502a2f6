"""List the tensors in Keras' HDF5 layouts: where each layer's weights are, and in which order.

Keras 3 stores a layer under its class and rank, Keras 1 and 2 under its name, with the order. Links that lead out of
the file are not followed.
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
    """One array of a file. Tensors of one layer come in the order of Keras' `layer.weights`."""

    scope: str  # the nested model that the layer belongs to
    layer: str
    name: str  # for messages
    kind: str  # kernel, bias, gamma, ...; "" where the file does not say
    shape: tuple[int, ...]
    data: Any  # an array, or an HDF5 dataset that is read on demand


def kind(name: str) -> str:
    """Return a weight's kind, from the last part of its name in Keras or torch."""
    last = re.split("[/.]", name)[-1].removesuffix(":0")
    return KINDS.get(last, last)


def snake(name: str) -> str:
    """Convert a class name as Keras does: Conv2D -> conv2d, BatchNormalization -> batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def store_paths(layers: Iterable[Any], at: str = "layers") -> Iterator[tuple[str, Any]]:
    """Yield each layer with its path in a Keras 3 file: its class and its rank among layers of that class.

    Takes layers or their configs, and descends into nested models.
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
    """Yield all layers in the network's order, including those of nested models."""
    for layer in model.layers:
        if isinstance(getattr(layer, "layers", None), list):
            yield from layers_of(layer)
        else:
            yield layer


def finish(model: keras.Model) -> None:
    """Update what layers derive from weights just set: Normalization keeps copies."""
    for layer in layers_of(model):
        if layer.weights and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def by_config(file: h5py.File, config: dict[str, Any]) -> Iterator[Tensor]:
    """Yield tensors in the order in which the config lists the layers, with the layers' names."""
    seen = set()
    # The config lists operations such as x / 255 among the layers.
    for path, layer in _paths(file, _without_operations(config["config"]["layers"])):
        if path not in seen and f"{path}/vars" in file:
            yield from _vars(_group(file, f"{path}/vars"), path.rpartition("/")[0], layer["config"]["name"])
        seen.add(path)
    for path in _groups_with_vars(file):
        if path not in seen and path.startswith(CONTAINERS):
            yield from _vars(_group(file, f"{path}/vars"), path, path)


def _paths(file: h5py.Group, layers: list[dict[str, Any]], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield layers with their paths as `store_paths` does, and of TensorFlow 2.13, too, which counted layers with
    weights twice."""
    container = at + CONTAINERS[1]
    if container not in file:
        yield from store_paths(layers, at + CONTAINERS[0])
        return
    ranks: dict[str, Iterator[str]] = {}
    for layer in layers:
        name = snake(layer["class_name"])
        found = [key for key in file[container] if re.fullmatch(rf"{name}(_\d+)?", key)]
        rank = ranks.setdefault(name, iter(sorted(found, key=lambda key: (len(key), key))))
        path = f"{container}/{next(rank, name)}"  # a Sequential's input has none
        inner = layer["config"].get("layers")
        yield from _paths(file, inner, f"{path}/") if isinstance(inner, list) else [(path, layer)]


def _without_operations(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    real = [layer for layer in layers if not str(layer.get("module")).startswith("keras.src.ops")]
    for layer in real:
        if isinstance(layer["config"].get("layers"), list):
            layer["config"]["layers"] = _without_operations(layer["config"]["layers"])
    return real


def layer_tensors(file: h5py.File, layers: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield the config of each layer of Keras 2, at any depth, with its tensors in `.h5` or inside `.keras`."""
    if any(name in file for name in CONTAINERS):
        for path, layer in _paths(file, layers):
            vars_path = f"{path}/vars"
            yield layer, list(_vars(_group(file, vars_path), "", layer["config"]["name"])) if vars_path in file else []
        return
    root, groups = _root(file), set(layer_names(file))
    for outer in layers:
        name = outer["config"]["name"]
        tensors: dict[str, list[Tensor]] = {}
        for weight in _names(_group(root, name), "weight_names") if name in groups else []:
            data = _dataset(_group(root, name), weight)
            tensors.setdefault(weight.split("/")[-2], []).append(
                Tensor("", name, weight, kind(weight), data.shape, data)
            )
        for _, layer in store_paths([outer]):
            inner = [layer["config"]["name"]] if layer is not outer else list(tensors)
            yield layer, [tensor for own in inner for tensor in tensors.get(own, [])]


def unordered(file: h5py.File) -> list[Tensor]:
    """List tensors in no particular order, each under the path of its layer."""
    tensors = []
    for path in _groups_with_vars(file):
        if path.startswith(CONTAINERS):
            layer = "/".join(CONTAINERS[0] if part in CONTAINERS else part for part in path.split("/"))
            tensors += list(_vars(_group(file, f"{path}/vars"), "", layer))
    return tensors


def _groups_with_vars(group: h5py.Group, at: str = "") -> Iterator[str]:
    for name in group:
        # A dropout's random state is not a weight.
        if name == "vars" and at and not at.endswith("seed_generator"):
            yield at
        elif name != "vars" and _is_group(group, name):
            yield from _groups_with_vars(group[name], f"{at}/{name}" if at else name)


def _vars(group: h5py.Group, scope: str, layer: str) -> Iterator[Tensor]:
    for name in sorted(group, key=lambda key: (len(key), key)):
        data = _dataset(group, name)
        yield Tensor(scope, layer, f"{layer}/{name}", "", data.shape, data)


def legacy(file: h5py.File) -> Iterator[Tensor]:
    """Yield tensors in the file's order. A nested model is one group; its weights' names tell its layers apart."""
    root, names = _root(file), layer_names(file)
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


def layer_names(file: h5py.File) -> list[str]:
    """Read the names of the outermost layers from a file of Keras 1 or 2; empty for Keras 3's."""
    return _names(_root(file), "layer_names")


def _root(file: h5py.File) -> h5py.Group:
    return _group(file, "model_weights") if "model_weights" in file else file


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Read an attribute, which Keras splits into attribute0, attribute1, ... if it is long."""
    numbered = [f"{attribute}{i}" for i in range(len(group.attrs))]
    parts = [group.attrs[key] for key in (attribute, *numbered) if key in group.attrs]
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _is_group(parent: h5py.Group, name: str) -> bool:
    import h5py

    # Other kinds of link may lead into another file.
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
