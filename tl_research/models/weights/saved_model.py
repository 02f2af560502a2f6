"""Load a whole Keras model from a file, built-in layers only, and cut it down to its feature map."""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.models.weights.keras2 import CLASSES, OLD_FUNCTIONS, is_keras2, rebuild
from tl_research.models.weights.keras_file import (
    CONFIG,
    WEIGHTS,
    ModelConfig,
    is_archive,
    read_model,
    read_weights,
    reading,
)
from tl_research.models.weights.keras_layout import finish

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

# Modules that may define parts of an image network. Not here: Lambda, layers that wrap another framework's model or
# open a file (TFSMLayer, TorchModuleWrapper, StringLookup, ...), and functions such as keras.utils.get_file.
ALLOWED = re.compile(
    r"keras\.src\.("
    r"layers\.(activations|attention|convolutional|core|merging|normalization|pooling|regularization|reshaping|rnn)\."
    r"|layers\.preprocessing\.(image_preprocessing\.|normalization$|rescaling$|pipeline$)"
    r"|models\.(functional|sequential|model)$|applications\.|dtype_policies\.|random\.seed_generator$"
    r"|initializers\.|regularizers\.|constraints\.|ops\."
    r")"
)
# Modules to search for classes of a Keras 2 file, which names no modules.
SPACES = ("models", "layers", "initializers", "regularizers", "constraints", "dtype_policies", "random")
INNER_SPACES = ("src.models.functional", "src.ops.numpy", "src.ops.nn")
PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__"}


def load_model(path: str | Path) -> keras.Model:
    """Load a whole model from a `.keras` or `.h5` file, not compiled.

    Raises InputError, naming the file, if it contains a Lambda or a class that is not built into Keras (neither is
    imported or called), contains weights without a model, or is missing or damaged.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".keras", ".h5", ".hdf5") and not path.is_dir():
        raise InputError(f"{path}: not a kind of model file that is known. Give a .keras or .h5 file from model.save")
    try:
        return _from_archive(path) if is_archive(path) else _from_hdf5(path)
    except InputError:
        raise
    except Exception as error:  # Keras raises many kinds of error if config and weights disagree
        reason = " ".join(str(error).split()).split(". ")[0][:150] or type(error).__name__
        raise InputError(f"{path} cannot be rebuilt as a Keras model: {reason}. Save it again as .keras") from None


def _from_archive(path: Path) -> keras.Model:
    import h5py
    import keras

    config, version = checked_config(path)
    weights = read_weights(path)
    if is_keras2(version):
        with h5py.File(io.BytesIO(weights), "r") as file:
            return rebuild(config, file, path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        with zipfile.ZipFile(file, "w") as archive:  # loads exactly what was checked
            archive.writestr(CONFIG, json.dumps(config))
            archive.writestr(WEIGHTS, weights)
        return keras.saving.load_model(file, compile=False, safe_mode=True)


def _from_hdf5(path: Path) -> keras.Model:
    import h5py
    import keras

    config, version = checked_config(path)
    if is_keras2(version):
        with h5py.File(path, "r") as file:
            return rebuild(config, file, path)
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    finish(model)  # Keras omits this for nested models
    return model


def checked_config(path: Path) -> ModelConfig:
    """Read the config of a whole model; raise InputError unless it names built-in network parts only."""
    with reading(path):
        model = read_model(path)
        check_code(*model, path)
        _check_built_in(*model, path)
    return model


def check_layers(model: keras.Model, source: str) -> None:
    """Check that a model could be loaded again from a file; raise InputError naming `source` and the layer if not."""
    import keras

    for operation in model.operations:
        cls = type(operation)
        if not ALLOWED.match(cls.__module__):
            raise _foreign(source, f"{cls.__module__}.{cls.__name__}", f" ({operation.name})")
    config = keras.saving.serialize_keras_object(model)
    check_code(config, "3", source)
    _check_built_in(config, "3", source)


def check_code(config: dict[str, Any], version: str, source: Path | str) -> None:
    """Check, without TensorFlow, that a model's config holds no Python code and names no module but Keras'."""
    for part in _objects(config):
        name, module, layer = str(part["class_name"]), part.get("module"), _layer_name(part)
        if name in ("Lambda", "__lambda__"):
            raise InputError(
                f"{source} holds a Lambda layer{layer}, which is Python code: refused, and not run. Replace it by a "
                "built-in layer (Rescaling, ...) and save again"
            )
        if module not in (None, "builtins") and not re.fullmatch(r"keras(\.\w+)*", str(module)):
            raise _foreign(source, f"{module}.{name}", layer)


def _check_built_in(config: dict[str, Any], version: str, source: Path | str) -> None:
    """Check that every part of a config is a built-in part of an image network. `rebuild` looks further into the
    functions of TensorFlow that a model of Keras 2 may call."""
    old = is_keras2(version)
    for part in _objects(config):
        name, module = str(part["class_name"]), part.get("module")
        if old:
            name, module = CLASSES.get(name, name), None if module != "builtins" else module
        if name in PLAIN or (old and name in OLD_FUNCTIONS):
            continue
        if not _is_built_in(name, module, part.get("config")):
            full = f"{module}.{name}" if module else str(part.get("registered_name") or name)
            raise _foreign(source, full, _layer_name(part))


def _layer_name(part: dict[str, Any]) -> str:
    config = part.get("config")
    return f" ({config['name']})" if isinstance(config, dict) and "name" in config else ""


def _foreign(source: Path | str, what: str, layer: str) -> InputError:
    return InputError(
        f"{source} holds {what}{layer}, which is no built-in Keras layer: refused, and not imported. Build the model "
        "from built-in layers, or give its weights alone"
    )


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every serialized object in a config, outermost first."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _is_built_in(name: str, module: Any, config: Any) -> bool:
    import keras

    if name == "function":
        activations = set(dir(keras.activations)) - {"get", "serialize", "deserialize"}
        return module in ("builtins", "keras.activations") and config in activations
    if module is None:  # Keras 2, and Keras 3 in .h5
        spaces = [import_module(f"keras.{space}") for space in SPACES + INNER_SPACES]
    elif isinstance(module, str) and re.fullmatch(r"keras(\.\w+)*", module):
        try:
            spaces = [import_module(module)]
        except ImportError:
            return False
    else:
        return False
    cls = next((getattr(space, name) for space in spaces if hasattr(space, name)), None)
    return isinstance(cls, type) and ALLOWED.match(cls.__module__) is not None


def feature_extractor(model: keras.Model, size: int | None = None) -> keras.Model:
    """Cut a classifier at its last feature map: image -> (height, width, channels), as one flat graph.

    Nested models are flattened and random augmentation is removed. `size` replaces the image's height and width; a
    network for images of any size gets 224 by default. Layers and weights are copies. Raises InputError if there is no
    feature map, more than one input or output, or if the graph does not accept `size`.
    """
    import keras

    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        raise InputError(f"the model {model.name} is a class of its own, not a functional or sequential Keras model")
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        raise InputError(f"the model {model.name} does not have one image as input and one output")
    try:
        layers = _copy(flat(model))
        network = keras.Model(layers.input, _feature_map(layers), name=model.name)
        own = tuple(network.input_shape[1:3])
        if size is None and own[0] != own[1]:
            raise InputError(f"the model {model.name} takes images of {own}, and ours are square: say which image_size")
        size = size or own[0] or 224
        if own != (size, size):
            image = keras.Input((size, size, *network.input_shape[3:]), name=network.inputs[0].name)
            network = flat(keras.Model(image, network.call(image), name=model.name))
        return _copy(network)
    except InputError:
        raise
    except Exception as error:  # Keras raises many kinds of error for graphs that cannot be cut or resized
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"the model {model.name} cannot be cut down to its features: {reason}") from None


def replace_stem(network: keras.Model, saved: keras.Model) -> keras.Model:
    """Give `network` the preprocessing of `saved`, the same network as one flat graph: all layers before the first that
    learns. Some applications have one more with ImageNet's weights than without, and users put their own there."""
    import keras

    stems = [list(takewhile(_is_preprocessing, model.operations)) for model in (network, saved)]
    own, theirs = ([(type(operation), _settings(operation)) for operation in stem] for stem in stems)
    if own == theirs:
        return network
    image = keras.Input(saved.input_shape[1:], name="image")
    first, first_saved = (model.operations[len(stem)] for model, stem in zip((network, saved), stems, strict=True))
    x = image
    if first_saved.input is not saved.input:
        x = keras.Function.call(keras.Function(saved.input, first_saved.input), image)
    features = keras.Function.call(keras.Function(first.input, network.output), x)
    log.info("kept the file's own preprocessing: %s", ", ".join(operation.name for operation in stems[1][1:]) or "none")
    return keras.Model(image, features, name=network.name)


def _is_preprocessing(operation: keras.Operation) -> bool:
    return type(operation).__name__ == "Normalization" or not getattr(operation, "weights", None)


def _settings(operation: keras.Operation) -> dict[str, Any]:
    """Return a layer's config without what differs between equal layers."""
    import keras

    config = operation.get_config() if isinstance(operation, keras.Layer) else {}
    return {key: value for key, value in config.items() if key not in ("name", "dtype", "trainable", "batch_shape")}


def flat(model: keras.Model) -> keras.Model:
    """Flatten nested models into one graph of the same layers, without those that are idle at inference. Raises Keras'
    ValueError if two nested models have layers of the same name."""
    import keras

    def call(operation: keras.Operation, *inputs: Any, **options: Any) -> Any:
        if isinstance(operation, keras.Model):
            return operation.call(*inputs, **options)
        return inputs[0] if _is_idle(operation) else operation(*inputs, **options)

    image = model.inputs[0]
    # Keras 2 wrote a list of inputs; from here on the input is one image.
    output = model.call(image) if isinstance(model, keras.Sequential) else model.outputs[0]
    model = keras.Model(image, output, name=model.name)
    while any(isinstance(operation, keras.Model) or _is_idle(operation) for operation in model.operations):
        model = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
    return model


def _is_idle(operation: keras.Operation) -> bool:
    """Recognize random augmentation, which belongs to the data, and conversions left by nested calls."""
    name, module = type(operation).__name__, type(operation).__module__
    return name == "ConvertToTensor" or (name.startswith("Random") and ".image_preprocessing." in module)


def _copy(model: keras.Model) -> keras.Model:
    """Clone a model into new layers, each called once, with the same weights."""
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    finish(copy)
    return copy


def _feature_map(model: keras.Model) -> keras.KerasTensor:
    """Find the last output larger than 1 x 1 pixel, before dropout; else the last with height and width."""
    operations = [op for op in model.operations if "Dropout" not in type(op).__name__]
    outputs = [op.output for op in operations if op.output is not model.input]
    maps = [output for output in outputs if len(getattr(output, "shape", ())) == 4]
    if not maps:
        raise InputError(f"the model {model.name} has no feature map (height, width, channels): it is no image network")
    wide = [output for output in maps if tuple(output.shape[1:3]) != (1, 1)]
    return (wide or maps)[-1]
