"""Describe the user's own network as a backbone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.backbone import Backbone
from tl_research.recipe import Positive, recipe
from tl_research.system.process import suppress_stderr

if TYPE_CHECKING:
    import keras


@recipe
class Custom(Backbone):
    """The user's own network: `function` is `module:function`. It is called like a constructor of `keras.applications`
    (`include_top=False, weights=None, input_shape=(s, s, 3)`) and returns a functional `keras.Model` whose output is a
    feature map."""

    function: str | None = Field(alias="build")
    min_size: Positive = 1

    @override
    def preflight(self) -> None:
        super().preflight()
        self._function()
        if self.weights == "imagenet":
            raise InputError("backbone.weights=imagenet: a custom network has none; give a path, or null")

    @override
    def files(self) -> list[Path]:
        source = getattr(sys.modules.get(self._function().__module__), "__file__", None)
        return [*super().files(), *([Path(source)] if source else [])]

    def _function(self) -> Callable[..., keras.Model]:
        module, _, name = (self.function or "").partition(":")
        if not module or not name:
            raise InputError(f"backbone.build={self.function}: give module:function, such as my_networks:small")
        sys.path.insert(0, str(Path.cwd()))  # where users keep their modules; `python -m` and the wheel do not add it
        try:
            with suppress_stderr():  # the module may import Keras
                return getattr(import_module(module), name)
        except (ImportError, AttributeError, SyntaxError) as error:
            raise InputError(f"backbone.build={self.function}: {error}") from None
        finally:
            sys.path.pop(0)

    @override
    def network(self) -> keras.Model:
        import keras

        function = self._function()
        try:
            network = self._construct(function)
        except MemoryError:  # not the function's fault
            raise
        except Exception as error:
            call = f"(include_top=False, weights=None, input_shape=({self.image_size}, {self.image_size}, 3))"
            raise InputError(f"backbone.build={self.function}: called as {call} it raised {error!r}") from error
        if not isinstance(network, keras.Model) or not getattr(network, "inputs", None):
            raise InputError(
                f"backbone.build={self.function}: it gave {type(network).__name__}; give a keras.Model with inputs, "
                f"functional, or Sequential with an Input"
            )
        shapes = [output.shape for output in network.outputs]
        if len(shapes) != 1 or len(shapes[0]) != 4:
            raise InputError(f"backbone.build={self.function}: its output {shapes} is not one feature map (n, h, w, c)")
        # A Sequential has no graph in which blocks can be found.
        network = keras.Model(network.inputs[0], network.outputs[0], name=network.name)
        weights.check_layers(network, f"backbone.build={self.function}")
        if self.weights:
            network = self._load(network, Path(self.weights).expanduser())
        try:
            return weights.flat(network)  # blocks are searched among layers, not inside nested models
        except ValueError:
            return network  # a nested model then counts as one block
