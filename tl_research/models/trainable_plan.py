"""Which part of a classifier a stage trains, resolved once from the stage's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from tl_research.models.blocks import split_backbone
from tl_research.models.classifier import BatchNorm, Parameters, Part, set_trainable

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrainablePlan:
    """A classifier, and the blocks of its backbone and the head with the variables that learn in each."""

    classifier: keras.Model
    parts: Sequence[Part]
    """The blocks from the bottom up, and the head."""

    @property
    def backbone(self) -> keras.Model:
        """Pixels -> features."""
        return self.classifier.get_layer("backbone")

    @property
    def head(self) -> keras.Model:
        """Features -> logits."""
        return self.classifier.get_layer("head")

    @property
    def num_unfrozen(self) -> int:
        """The number of blocks that may learn."""
        return sum(part.unfrozen for part in self.parts[:-1])

    @property
    def learning(self) -> list[keras.Variable]:
        """The variables that follow gradients."""
        return [variable for part in self.parts for variable in part.learning]

    @property
    def statistics(self) -> list[keras.Variable]:
        """The moving means and variances that follow the images."""
        return [variable for part in self.parts for variable in part.statistics]

    @property
    def prefix(self) -> keras.Model | None:
        """The frozen lower part of the backbone; None if all of it is unfrozen."""
        return self._split[0]

    @property
    def tail(self) -> keras.Model | None:
        """The unfrozen upper part of the backbone; None if all of it is frozen."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[keras.Model | None, keras.Model | None]:
        if self.num_unfrozen == 0:
            return self.backbone, None
        if self.num_unfrozen == len(self.parts) - 1:
            return None, self.backbone
        return split_backbone(self.backbone, self.num_unfrozen)


def resolve_plan(
    classifier: keras.Model,
    unfreeze: int | Literal["all"],
    batch_norm: BatchNorm = "frozen",
    parameters: Parameters = "all",
    layer_decay: float = 1.0,
) -> TrainablePlan:
    """Set a classifier's layers as `set_trainable` says, and return what learns now."""
    return TrainablePlan(classifier, set_trainable(classifier, unfreeze, batch_norm, parameters, layer_decay))
