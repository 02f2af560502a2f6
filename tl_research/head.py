"""Heads: recipes of what turns a feature vector into logits. The head is where the new classes live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from tl_research.recipe import Positive, Share, recipe

if TYPE_CHECKING:
    import keras


@recipe
class Head:
    """Base of the heads: `build` makes a `keras.Model` named `head`."""

    def build(self, feature_dim: int, num_classes: int) -> keras.Model:
        """Features `(n, feature_dim)` -> logits `(n, num_classes)`, float32 whatever the precision policy."""
        raise NotImplementedError


@recipe
class Linear(Head):
    """One dense layer. On features it is a logistic regression, and `optimizer=lbfgs` solves it to its optimum."""

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
    """Dense layers with ReLU, each with dropout and, if wanted, batch norm; then the logits."""

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
