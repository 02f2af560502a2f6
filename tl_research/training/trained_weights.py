"""Track the variables that training changes. Only these are saved to restore a state: frozen blocks are as they were
loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.metrics.classification import direction
from tl_research.models.classifier import Part
from tl_research.runs.checkpoint import CheckpointState

if TYPE_CHECKING:
    import keras

Weights = dict[int, np.ndarray]
"""Values of a classifier's variables, by their position in `classifier.variables`."""


@dataclass
class TrainedWeights:
    """The variables that stages change, and their values `before` any of them did."""

    before: Weights = field(default_factory=dict)

    def track(self, classifier: keras.Model, parts: Sequence[Part]) -> None:
        """Store the values of variables that are about to change. The random state of dropout changes too."""
        changing = {id(variable) for part in parts for variable in (*part.learning, *part.statistics)}
        weights = {id(variable) for variable in classifier.weights}
        for position, variable in enumerate(classifier.variables):
            if (id(variable) in changing or id(variable) not in weights) and position not in self.before:
                self.before[position] = variable.numpy()

    def variables(self, classifier: keras.Model) -> list[keras.Variable]:
        """List the tracked variables."""
        return [classifier.variables[position] for position in self.before]

    def includes(self, classifier: keras.Model, part: keras.Model) -> bool:
        """Return whether anything in a part of the classifier is tracked."""
        tracked = {id(variable) for variable in self.variables(classifier)}
        return any(id(variable) in tracked for variable in part.weights)

    def now(self, classifier: keras.Model) -> Weights:
        """Read the values of the tracked variables."""
        return {position: classifier.variables[position].numpy() for position in self.before}

    def restore(self, classifier: keras.Model, weights: Weights) -> None:
        """Restore the state in which only `weights` had changed."""
        assign_weights(classifier, {**self.before, **weights})

    @staticmethod
    def fits(classifier: keras.Model, weights: Weights) -> bool:
        """Return whether a classifier has variables of these shapes at these positions."""
        shapes = dict(enumerate(tuple(variable.shape) for variable in classifier.variables))
        return all(shapes.get(position) == value.shape for position, value in weights.items())

    def restore_checkpoint(self, classifier: keras.Model, weights: Weights) -> None:
        """Assign the values of a checkpoint to a classifier as it was loaded."""
        self.before = {position: classifier.variables[position].numpy() for position in weights}
        assign_weights(classifier, weights)


def assign_weights(classifier: keras.Model, weights: Mapping[int, np.ndarray]) -> None:
    """Assign values to variables by position."""
    variables = classifier.variables
    for position, value in weights.items():
        variables[position].assign(value)


def interpolate(start: Mapping[int, np.ndarray], end: Weights, share: float) -> Weights:
    """Go a share of the way from one state to another; counters and random states are those of the end."""
    return {
        position: value if share == 1 or value.dtype.kind != "f" else (1 - share) * start[position] + share * value
        for position, value in end.items()
    }


@dataclass
class BestEpoch:
    """The best epoch of all stages by the monitor of the `BestWeights` callback; of equal ones the earlier, unless a
    later one has also learned from the validation images.

    `value` is the monitored number, its sign such that smaller is better, `weights` what had changed by then, and
    `held_out` the `ClassifierState.held_out` of that moment. `stage` is None before the first epoch.
    """

    stage: str | None = None
    epoch: int = 0
    value: float = np.inf
    weights: Weights = field(default_factory=dict)
    held_out: np.ndarray | None = None

    def consider(
        self, rows: Sequence[Mapping[str, Any]], monitor: str, weights: Weights, held_out: np.ndarray | None
    ) -> None:
        """Keep a stage's final weights, those of the best of its epochs, if no earlier stage was better."""
        sign = 1 if direction(monitor) == "min" else -1
        row = min(rows, key=lambda row: sign * row[monitor])
        value = sign * row[monitor]
        if self.stage is None or value < self.value or (value == self.value and held_out is not None):
            self.stage, self.epoch, self.value = row["stage"], row["epoch"], value
            self.weights, self.held_out = weights, held_out

    def metrics(self) -> dict[str, Any]:
        """Give `best_stage` and `best_epoch`, once there is one."""
        return {} if self.stage is None else {"best_stage": self.stage, "best_epoch": self.epoch}

    def state(self) -> CheckpointState:
        """Give the state to save in a checkpoint."""
        arrays = {str(position): value for position, value in self.weights.items()}
        held_out = {} if self.held_out is None else {"held_out": self.held_out}
        return CheckpointState({"value": self.value}, arrays | held_out)

    @classmethod
    def of(cls, state: CheckpointState, metrics: Mapping[str, Any]) -> BestEpoch:
        """Read it from a checkpoint, whose metrics name the stage and the epoch."""
        weights = {int(position): value for position, value in state.arrays.items() if position.isdigit()}
        held_out = state.arrays.get("held_out")
        return cls(metrics["best_stage"], metrics["best_epoch"], state.facts["value"], weights, held_out)
