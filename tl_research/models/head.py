"""Describe heads, which map a feature vector to logits of the new classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.recipe import Positive, Share, recipe

if TYPE_CHECKING:
    import keras

    from tl_research.models.nearest import Whitening


KINDS = "linear", "prototype", "knn"
"""The heads that need no epochs."""


@recipe
class Head:
    """Base class of heads."""

    def build(self, feature_dim: int, num_classes: int) -> keras.Model:
        """Build the model `head`: features `(n, feature_dim)` -> logits `(n, num_classes)`, always float32."""
        raise NotImplementedError


@recipe
class DirectHead(Head):
    """Base class of heads computed directly from features, without an optimizer."""

    def fit(self, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int = 1) -> keras.Model:
        """Compute the head from features `(n * views, d)`, each image's views in consecutive rows, and labels
        `(n * views,)`. Every class must occur."""
        raise NotImplementedError


@recipe
class Linear(Head):
    """One dense layer. On fixed features it is a logistic regression; `optimizer=lbfgs` finds its optimum."""

    dropout: Share = 0.0

    @override
    def build(self, feature_dim: int, num_classes: int) -> keras.Model:
        import keras

        stack = [keras.Input((feature_dim,), name="features")]
        if self.dropout:
            stack.append(keras.layers.Dropout(self.dropout, name="dropout"))
        stack.append(keras.layers.Dense(num_classes, dtype="float32", name="logits"))
        return keras.Sequential(stack, name="head")


@recipe
class MLP(Head):
    """Dense layers with ReLU, dropout and optional batch norm, then the logits."""

    units: Positive = 256
    layers: Positive = 1
    dropout: Share = 0.3
    batch_norm: bool = True

    @override
    def build(self, feature_dim: int, num_classes: int) -> keras.Model:
        import keras

        stack = [keras.Input((feature_dim,), name="features")]
        for index in range(1, self.layers + 1):
            stack.append(keras.layers.Dense(self.units, use_bias=not self.batch_norm, name=f"dense{index}"))
            if self.batch_norm:
                stack.append(keras.layers.BatchNormalization(name=f"bn{index}"))
            stack.append(keras.layers.ReLU(name=f"relu{index}"))
            if self.dropout:
                stack.append(keras.layers.Dropout(self.dropout, name=f"dropout{index}"))
        stack.append(keras.layers.Dense(num_classes, dtype="float32", name="logits"))
        return keras.Sequential(stack, name="head")


@recipe
class Prototype(DirectHead):
    """Nearest class mean (Snell et al. 2017, arXiv 1703.05175): logits are scaled negative squared distances to the
    class means; leave-one-out log loss chooses the scale. `normalize` first scales features to length 1 (Wang et al.
    2019, arXiv 1911.04623). `whiten` first makes the covariance within classes the identity: a discriminant analysis.
    The head is a dense layer, so later stages can train it further."""

    normalize: bool = True
    whiten: bool = False

    @override
    def fit(self, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int = 1) -> keras.Model:
        import keras

        from tl_research.models import nearest

        fit = nearest.whitened_prototypes if self.whiten else nearest.prototypes
        *whitening, kernel, bias = fit(features, labels, num_classes, views, normalize=self.normalize)
        stack: list[Any] = [keras.Input((len(kernel),), name="features")]
        if self.normalize:
            stack.append(keras.layers.UnitNormalization(name="unit", dtype="float32"))
        stack.append(keras.layers.Dense(num_classes, name="logits", dtype="float32"))
        model = keras.Sequential(stack, name="head")
        model.get_layer("logits").set_weights([kernel, bias])
        return whitened(model, whitening[0]) if self.whiten else model


@recipe
class KNN(DirectHead):
    """k nearest neighbours by cosine, each voting with weight `exp(cosine / temperature)` (Wu et al. 2018, arXiv
    1805.01978). Leave-one-out log loss chooses values that are null. `whiten` first makes the covariance within classes
    the identity. The model stores all training features."""

    k: Positive | None = None
    temperature: Annotated[float, Field(ge=1e-3)] | None = None
    whiten: bool = False

    @override
    def fit(self, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int = 1) -> keras.Model:
        import keras
        from keras import ops

        from tl_research.models import nearest

        if self.whiten:
            whitening = nearest.Whitening.of(features, labels)
            plain = replace(self, whiten=False)
            return whitened(plain.fit(whitening(features), labels, num_classes, views), whitening)
        k, temperature = nearest.choose_k(features, labels, num_classes, views, self.k, self.temperature)
        inputs = keras.Input((features.shape[1],), name="features")
        unit = keras.layers.UnitNormalization(name="unit", dtype="float32")(inputs)
        bank = keras.layers.Dense(len(features), use_bias=False, name="bank", dtype="float32", trainable=False)
        cosines = bank(unit)
        best = ops.top_k(cosines, k)[0]
        weights = ops.exp((cosines - best[:, :1]) / temperature) * ops.cast(cosines >= best[:, -1:], "float32")
        votes = keras.layers.Dense(num_classes, use_bias=False, name="votes", dtype="float32", trainable=False)
        logits = ops.log(votes(weights) + nearest.PSEUDO_VOTE / num_classes)
        model = keras.Model(inputs, logits, name="head")
        bank.set_weights([nearest.unit(features).T])
        votes.set_weights([np.eye(num_classes, dtype=np.float32)[labels]])
        return model


@recipe
class AutoHead(DirectHead):
    """The best of several kinds of head, `among`, on the images of a run, which writes into its configuration what was
    `chosen`; see `experiment.head_selection`. Prototypes and neighbours are looked at with and without whitening."""

    among: tuple[str, ...] = KINDS
    chosen: Any = None

    @model_validator(mode="after")
    def _are_heads_without_epochs(self) -> Self:
        other = next((name for name in self.among if name not in KINDS), None)
        if other or not self.among:
            why = f"{other} is none of them" if other else "there is nothing to choose among"
            raise InputError(f"head.among=[{','.join(self.among)}]: {why}; give some of {', '.join(KINDS)}")
        return self

    @property
    def candidates(self) -> list[Head]:
        """List the heads to look at; the linear one, whose class activation map is exact, first."""
        plain: list[Head] = [Linear()] if "linear" in self.among else []
        prototypes = [Prototype(), Prototype(whiten=True)] if "prototype" in self.among else []
        return [*plain, *prototypes, *([KNN(), KNN(whiten=True)] if "knn" in self.among else [])]


def rescaled(head: keras.Model, scale: np.ndarray) -> keras.Model:
    """Return a head for features that are still to be multiplied by `scale`, `(d,)`, which become a layer of it."""
    import keras

    return _after(keras.layers.Rescaling(scale.tolist(), name="scale", dtype="float32"), head, len(scale))


def whitened(head: keras.Model, whitening: Whitening) -> keras.Model:
    """Return a head for features that are still to be whitened, by a dense layer of it."""
    import keras

    layer = keras.layers.Dense(len(whitening.bias), name="whiten", dtype="float32", trainable=False)
    model = _after(layer, head, len(whitening.kernel))
    layer.set_weights([whitening.kernel, whitening.bias])
    return model


def _after(layer: keras.Layer, head: keras.Model, width: int) -> keras.Model:
    import keras

    features = keras.Input((width,), name="features")
    return keras.Model(features, head(layer(features)), name="head")
