"""Describe vision transformers (ViT, DeiT, DINOv2) as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import model_validator
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.backbone import Backbone, naming_the_key
from tl_research.models.networks.vision_transformer import Architecture, pool_tokens, vision_transformer
from tl_research.models.weights.transformer_file import arrange, read_transformer
from tl_research.recipe import Count, Positive, recipe

if TYPE_CHECKING:
    import keras


@recipe
class VisionTransformer(Backbone):
    """A vision transformer: its class token and the mean of its patch tokens, side by side. `weights` may be a file
    with timm's or Hugging Face's names (`.safetensors`, `.pth`), for any image size: positions are interpolated.
    `imagenet` is the file that was published at `url` under `licence`, put into Keras' folder of models by hand."""

    min_size: Positive = 1
    patch: Positive
    width: Positive
    depth: Positive
    heads: Positive
    registers: Count = 0
    layer_scale: bool = False
    url: str
    licence: str

    suffixes: ClassVar[tuple[str, ...]] = (".safetensors", *weights.SUFFIXES)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        size, patch = self.image_size or 0, self.patch
        if size % patch:
            near = max(round(size / patch), 1) * patch
            raise ValueError(f"image_size={size}: it is no multiple of {patch}, the side of a patch; give {near}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: it cannot be divided among heads={self.heads}")
        return self

    @property
    def sizes(self) -> Architecture:
        """Give the network's sizes."""
        grid = (self.image_size or 0) // self.patch
        return Architecture(self.patch, self.width, self.depth, self.heads, self.registers, self.layer_scale, grid)

    @override
    def preflight(self) -> None:
        super().preflight()
        if self.weights == "imagenet":
            self._check_file(self.files()[0])

    @override
    def files(self) -> list[Path]:
        if self.weights != "imagenet":
            return super().files()
        return [weights.published_file(f"{self.name.partition('@')[0]}.safetensors", self.url, self.licence)]

    @override
    def _check_file(self, path: Path) -> None:
        if path.suffix in weights.KERAS_SUFFIXES:
            super()._check_file(path)
        else:
            read_transformer(path, self.sizes)

    @override
    def _up_to_layer(self, network: keras.Model) -> keras.Model:
        import keras

        cut, sizes = super()._up_to_layer(network), self.sizes
        if len(cut.output_shape) == 2:
            return cut
        if cut.output_shape[1:2] != (sizes.prefix + sizes.grid**2,):
            raise InputError(f"backbone.layer={self.layer}: it gives no tokens; give that of a block, such as block8")
        return keras.Model(cut.input, pool_tokens(cut.output, sizes, self.pooling), name=network.name)

    @override
    def network(self) -> keras.Model:
        network = vision_transformer(self.sizes, self.pooling, self.name.partition("@")[0])
        for path in self.files():
            if path.suffix in weights.KERAS_SUFFIXES:
                return self._load(network, path)
            with naming_the_key():
                arranged = arrange(read_transformer(path, self.sizes), self.sizes)
                if not all(np.isfinite(array).all() for arrays in arranged.values() for array in arrays):
                    raise InputError(f"{path} is damaged: it holds NaN or infinity. Download it again")
            for name, arrays in arranged.items():
                network.get_layer(name).set_weights(arrays)
        return network
