"""Moved: what the stages of a run have changed of a classifier so far. Only that need be kept to come back to a state:
frozen blocks are as they were loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tl_research.models.classifier import Part
from tl_research.runs.checkpoint import CheckpointState

if TYPE_CHECKING:
    import keras

Weights = dict[int, np.ndarray]
"""Values of a classifier's variables, by their place in `classifier.variables`."""


@dataclass(frozen=True)
class Snapshot:
    """The best of all epochs so far: its number, the smaller the better, and what had moved by then; `held_out` are
    logits for the validation images from a head that was not fitted on them."""

    value: float
    weights: Weights
    held_out: np.ndarray | None

    def state(self) -> CheckpointState:
        """For a checkpoint."""
        arrays = {str(place): value for place, value in self.weights.items()}
        return CheckpointState(
            {"value": self.value}, arrays | ({} if self.held_out is None else {"held_out": self.held_out})
        )

    @classmethod
    def of(cls, state: CheckpointState) -> Snapshot:
        """Out of a checkpoint."""
        weights = {int(place): value for place, value in state.arrays.items() if place.isdigit()}
        return cls(state.facts["value"], weights, state.arrays.get("held_out"))


@dataclass
class TrainedWeights:
    """The variables that stages have moved, and how they were `before`."""

    before: Weights = field(default_factory=dict)

    def track(self, classifier: keras.Model, parts: Sequence[Part]) -> None:
        """Remembers how that which is going to move is now. Dropout's random state moves, too."""
        moving = {id(variable) for part in parts for variable in (*part.learning, *part.statistics)}
        weights = {id(variable) for variable in classifier.weights}
        for place, variable in enumerate(classifier.variables):
            if (id(variable) in moving or id(variable) not in weights) and place not in self.before:
                self.before[place] = np.array(variable)

    def variables(self, classifier: keras.Model) -> list[keras.Variable]:
        """Those that have moved, or are about to."""
        return [classifier.variables[place] for place in self.before]

    def includes(self, classifier: keras.Model, part: keras.Model) -> bool:
        """Whether anything in a part of the classifier has moved."""
        moved = {id(variable) for variable in self.variables(classifier)}
        return any(id(variable) in moved for variable in part.weights)

    def now(self, classifier: keras.Model) -> Weights:
        """Their values."""
        return {place: np.array(classifier.variables[place]) for place in self.before}

    def restore(self, classifier: keras.Model, weights: Weights) -> None:
        """To the state in which `weights` were all that had moved."""
        assign_weights(classifier, {**self.before, **weights})

    @staticmethod
    def fits(classifier: keras.Model, weights: Weights) -> bool:
        """Whether a classifier has variables of these shapes at these places."""
        shapes = dict(enumerate(tuple(variable.shape) for variable in classifier.variables))
        return all(shapes.get(place) == value.shape for place, value in weights.items())

    def restore_checkpoint(self, classifier: keras.Model, weights: Weights) -> None:
        """Puts a classifier that is as it was loaded where another was when it had these values."""
        self.before = {place: np.array(classifier.variables[place]) for place in weights}
        assign_weights(classifier, weights)


def assign_weights(classifier: keras.Model, weights: Mapping[int, np.ndarray]) -> None:
    """Gives variables these values."""
    variables = classifier.variables
    for place, value in weights.items():
        variables[place].assign(value)
