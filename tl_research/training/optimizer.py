"""Optimizer recipes. `LBFGS` solves a linear head on features; the others train by epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator
from typing_extensions import override

from tl_research.recipe import Rate, Share, recipe

if TYPE_CHECKING:
    import keras

Momentum = Annotated[float, Field(ge=0, lt=1)]


@recipe
class Optimizer:
    """Base of the optimizers."""


@recipe
class LBFGS(Optimizer):
    """Multinomial logistic regression by L-BFGS (Liu & Nocedal 1989), run to its optimum.

    `l2` is the strength of the penalty, `l2 / 2 * |kernel|^2` beside the mean loss on features scaled to a mean
    variance of 1; null chooses it among 13 by `folds`-fold cross-validation. With `average` the head is the mean of
    those of all penalties tried, weighted by the likelihood of their out-of-fold answers: a linear head, too.
    """

    l2: Annotated[float, Field(gt=0)] | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    max_iterations: Annotated[int, Field(ge=1)] = 1000
    average: bool = False

    @model_validator(mode="after")
    def _average_has_penalties(self) -> Self:
        if self.average and self.l2 is not None:
            raise ValueError("average=true is a mean over penalties, and l2 gives one; add optimizer.l2=null")
        return self


@recipe
class GradientOptimizer(Optimizer):
    """Base of the optimizers that train by epochs."""

    learning_rate: Rate

    def build(self, learning_rate: float | None = None) -> keras.Optimizer:
        """Build the Keras optimizer, at the stage's `learning_rate` if it has one."""
        raise NotImplementedError


@recipe
class Adam(GradientOptimizer):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980)."""

    learning_rate: Rate = 1e-3
    beta_1: Momentum = 0.9
    beta_2: Momentum = 0.999

    @override
    def build(self, learning_rate: float | None = None) -> keras.Optimizer:
        import keras

        return keras.optimizers.Adam(learning_rate or self.learning_rate, self.beta_1, self.beta_2)


@recipe
class AdamW(GradientOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    learning_rate: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    beta_1: Momentum = 0.9
    beta_2: Momentum = 0.999

    @override
    def build(self, learning_rate: float | None = None) -> keras.Optimizer:
        import keras

        optimizer = keras.optimizers.AdamW(
            learning_rate or self.learning_rate,
            weight_decay=self.weight_decay,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
        )
        # Decay shrinks towards 0, which is a sensible prior for kernels, but not for biases and norms.
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer


@recipe
class SGD(GradientOptimizer):
    """Stochastic gradient descent with momentum."""

    learning_rate: Rate = 1e-2
    momentum: Momentum = 0.9
    nesterov: bool = True

    @override
    def build(self, learning_rate: float | None = None) -> keras.Optimizer:
        import keras

        return keras.optimizers.SGD(learning_rate or self.learning_rate, self.momentum, self.nesterov)


@recipe
class RMSprop(GradientOptimizer):
    """RMSprop (Hinton, lecture 6e, 2012)."""

    learning_rate: Rate = 1e-3
    rho: Share = 0.9
    momentum: Momentum = 0.0

    @override
    def build(self, learning_rate: float | None = None) -> keras.Optimizer:
        import keras

        return keras.optimizers.RMSprop(learning_rate or self.learning_rate, self.rho, self.momentum)
