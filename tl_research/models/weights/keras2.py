"""Rebuild a model that Keras 2 wrote (TensorFlow 2.0 to 2.15) from Keras 3's layers, as one flat graph.

Keras 3 refuses keys, names and layers of that time (`groups` of a depthwise convolution, `keras.src.engine.functional`,
`TFOpLambda` for `x / 255`), and calls a Sequential in a Sequential with too many tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.models.weights.keras_layout import Tensor, layer_tensors, layers_of
from tl_research.models.weights.matching import assign

if TYPE_CHECKING:
    import h5py
    import keras

Config = dict[str, Any]

MODELS = ("Functional", "Sequential", "Model")
OLD_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
CLASSES = {"BatchNormalizationV1": "BatchNormalization", "ThresholdedReLU": "ReLU"}
RENAMED = {"alpha": "negative_slope", "theta": "threshold"}
FOR_TRAINING = ("_initializer", "_regularizer", "_constraint")  # ends of keys that a trained network does not need
WITHOUT_EFFECT = ("batch_input_shape", "fused", "implementation", "groups")
OF_EVERY_LAYER = ("name", "dtype", "trainable")
OPERATORS = {"add": "add", "subtract": "sub", "multiply": "mul", "truediv": "truediv", "divide": "truediv"}
FUNCTIONS = {  # of TensorFlow, and of Keras with the same arguments in the same order
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.silu": "silu",
    "nn.swish": "silu",
    "nn.sigmoid": "sigmoid",
    "math.sigmoid": "sigmoid",
    "math.reduce_mean": "mean",
    "math.reduce_max": "max",
    "cast": "cast",
}


def is_keras2(version: str) -> bool:
    """Return whether this version of Keras, "" in the oldest files, is before 3."""
    return not version.startswith("3")


def rebuild(description: Config, file: h5py.File, path: Path) -> keras.Model:
    """Build the model of a config, already checked, with the weights of `file`, an `.h5` or the one inside a `.keras`.

    Raises InputError naming the layer that Keras 3 does not have or whose tensors do not fit.
    """
    import keras

    builder = _Builder(path)
    image = keras.Input(_image_shape(description), name="image")
    output = builder.call_model(description, [image], "")
    model = keras.Model(image, output, name=description["config"]["name"])
    found = {
        id(builder.layers[id(config)]): tensors
        for config, tensors in layer_tensors(file, _layers(description))
        if id(config) in builder.layers
    }
    matched: list[Tensor] = []
    for layer in layers_of(model):
        tensors, shapes = found.get(id(layer), []), [tuple(weight.shape) for weight in layer.weights]
        if type(layer).__name__ == "Normalization":
            tensors = tensors[: len(shapes)]  # Keras 2 also kept a count of images
        if [tensor.shape for tensor in tensors] != shapes:
            raise InputError(f"{path}: the weights of its layer {layer.name} are not of the shapes {shapes}")
        matched += tensors
    assign(model, matched, path)
    return model


class _Builder:
    """Calls the layers of a config. `layers` are those built, by the `id` of their config."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: dict[int, keras.Layer] = {}
        self.names = {"image"}

    def call_model(self, description: Config, inputs: list[Any], scope: str) -> Any:
        """Call all layers of a model; `scope` is put before a layer's name if another has it."""
        layers, config = _layers(description), description["config"]
        if description["class_name"] == "Sequential":
            (x,) = inputs
            for layer in layers:
                if layer["class_name"] != "InputLayer":
                    x = self.call(layer, [x], {}, scope)
            return x
        outputs = {name: [x] for (name, *_), x in zip(_as_list(config["input_layers"]), inputs, strict=True)}
        waiting = [(layer, node) for layer in layers for node in layer["inbound_nodes"]]
        while waiting:
            later = []
            for layer, node in waiting:
                arguments = _arguments(node, outputs)
                if arguments is None:
                    later.append((layer, node))
                    continue
                # A nested model with an input of its own counts its calls from 1.
                first = [None] * _starts_with_input(layer)
                outputs.setdefault(layer["name"], first).append(self.call(layer, *arguments, scope))
            if len(later) == len(waiting):
                raise InputError(f"{self.path}: the graph of {config['name']} does not reach {later[0][0]['name']}")
            waiting = later
        ((name, number, *_),) = _as_list(config["output_layers"])
        return outputs[name][number]

    def call(self, layer: Config, inputs: list[Any], options: Config, scope: str) -> Any:
        """Call one layer, function or nested model on symbolic tensors."""
        kind, config = layer["class_name"], layer["config"]
        if kind in MODELS:
            return self.call_model(layer, inputs, f"{scope}{_name(config)}_")
        if kind == "TFOpLambda":
            return self._function(config)(*inputs, **options)
        if kind == "SlicingOpLambda":
            return inputs[0][tuple(_slice(part) for part in options["slice_spec"])]
        if kind.startswith("Random"):
            return inputs[0]
        if id(layer) not in self.layers:
            self.layers[id(layer)] = self._build(layer, scope)
        output = self.layers[id(layer)](inputs if len(inputs) > 1 else inputs[0], **options)
        return _old_hard_sigmoid(output) if config.get("activation") == "hard_sigmoid" else output

    def _build(self, layer: Config, scope: str) -> keras.Layer:
        import keras

        kind = str(CLASSES.get(layer["class_name"], layer["class_name"]))
        cls, config = getattr(keras.layers, kind), layer["config"]
        known = {*inspect.signature(cls).parameters, *OF_EVERY_LAYER}
        options = {}
        for key, value in config.items():
            key = key if key in known else RENAMED.get(key, key)
            if key in known and not key.endswith(FOR_TRAINING):
                options[key] = value
            elif value not in (None, False, []) and not key.endswith(FOR_TRAINING) and key not in WITHOUT_EFFECT:
                raise InputError(f"{self.path}: Keras 3 does not have {key}={value} of its layer {config['name']}")
        if options["name"] in self.names:
            options["name"] = scope + options["name"]
        self.names.add(options["name"])
        if isinstance(options.get("dtype"), dict):  # a policy such as mixed_float16
            options["dtype"] = options["dtype"]["config"]["name"]
        if kind == "BatchNormalization" and isinstance(options.get("axis"), list):
            (options["axis"],) = options["axis"]
        if options.get("activation") == "hard_sigmoid":
            options["activation"] = None
        return cls.from_config(options)

    def _function(self, config: Config) -> Callable[..., Any]:
        import keras

        name = config["function"]
        if name == "nn.bias_add":
            return lambda x, bias, **_: keras.layers.Rescaling(1.0, offset=bias, name=f"{config['name']}_rescaling")(x)
        if name in FUNCTIONS:
            return _without_name(getattr(keras.ops, FUNCTIONS[name]))
        space, _, last = name.rpartition(".")
        if space in ("math", "__operators__") and last in OPERATORS:
            return _without_name(getattr(operator, OPERATORS[last]))
        raise InputError(
            f"{self.path}: its layer {config['name']} calls tf.{name}, which is no built-in Keras layer. Replace it by "
            "one and save again"
        )


def _without_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """Take TensorFlow's arguments by their names, in order, without the operation's name."""
    return lambda *inputs, name=None, **options: function(*inputs, *options.values())


def _old_hard_sigmoid(x: Any) -> Any:
    """Compute Keras 2's: clip(0.2 x + 0.5, 0, 1). Keras 3's is clip(x / 6 + 0.5, 0, 1)."""
    import keras

    return keras.ops.clip(x * 0.2 + 0.5, 0.0, 1.0)


def _layers(description: Config) -> list[Config]:
    config = description["config"]
    return config if isinstance(config, list) else config["layers"]  # the oldest Sequential is a list


def _name(config: Any) -> str:
    return config.get("name", "model") if isinstance(config, dict) else "sequential"


def _starts_with_input(layer: Config) -> bool:
    return layer["class_name"] in MODELS and _layers(layer)[0]["class_name"] == "InputLayer"


def _image_shape(description: Config) -> tuple[int | None, ...]:
    """Find the shape of the input, which only the innermost first layer may say."""
    first = description
    while first["class_name"] in MODELS:
        if isinstance(first["config"], dict) and "input_layers" in first["config"]:
            name = _as_list(first["config"]["input_layers"])[0][0]
            first = next(layer for layer in _layers(first) if layer["name"] == name)
        else:
            first = _layers(first)[0]
    config = first["config"]
    return tuple(config.get("batch_input_shape") or config["batch_shape"])[1:]


def _as_list(references: list[Any]) -> list[Any]:
    """Give a list of [layer, call, output], which Keras writes without the outer list if it is one."""
    return [references] if isinstance(references[0], str) else references


def _is_reference(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)


def _arguments(node: list[Any], outputs: dict[str, list[Any]]) -> tuple[list[Any], Config] | None:
    """Give the tensors and options that a call takes, or None if one has not been computed yet."""
    inputs: list[Any] = []
    options: Config = {}
    for name, number, third, *rest in _as_list(node):
        if name == "_CONSTANT_VALUE":
            inputs.append(third)
        elif number < len(outputs.get(name, ())):
            inputs.append(outputs[name][number])
        else:
            return None
        options |= rest[0] if rest else {}
    options.pop("training", None)
    for key, value in options.items():
        if _is_reference(value):
            if value[1] >= len(outputs.get(value[0], ())):
                return None
            options[key] = outputs[value[0]][value[1]]
    return inputs, options


def _slice(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return ... if part.get("class_name") == "__ellipsis__" else slice(part["start"], part["stop"], part["step"])
