"""Callbacks: recipes, built anew for each stage, so that no state leaks from one stage into the next."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from tl_research.metrics.classification import direction
from tl_research.recipe import Positive, recipe
from tl_research.system.console import only_warning

if TYPE_CHECKING:
    import keras

    from tl_research.training.inputs import StageInputs

EpochMonitor = Literal["loss", "accuracy", "val_loss", "val_accuracy"]
CallbackState = tuple[dict[str, Any], list[np.ndarray]]


@dataclass(frozen=True)
class Results:
    """A finished run as callbacks see it: metrics, hyperparameters, and logits of the test images."""

    metrics: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    class_names: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    samples: Sequence[tuple[np.ndarray, int, np.ndarray]]
    """Some test images: pixels uint8 `(s, s, 3)`, the label, the logits `(k,)`."""


@recipe
class Callback:
    """Base of the callbacks."""

    def preflight(self) -> None:
        """Raise `InputError` if something that the callback needs is not installed."""

    def build(self, directory: Path) -> keras.callbacks.Callback:
        """Build the Keras callback for one stage of the run in `directory`. Epochs are counted over all stages;
        `params["moving"]` are the variables that the stage may change. A callback with state has
        `get_state() -> (plain data, list of arrays)` and `set_state`, so that a resumed run restores it."""
        raise NotImplementedError

    def see(
        self, directory: Path, epoch: int, pixels: np.ndarray, targets: np.ndarray, class_names: Sequence[str]
    ) -> None:
        """Show some of a stage's first batches of images before it, as the network will see them: uint8
        `(b, s, s, 3)` and targets `(b, k)`."""

    def finish(self, directory: Path, results: Results) -> None:
        """Show the results, once, after the run has been evaluated."""

    def close(self, directory: Path, state: str) -> None:
        """End, with the final state of the run, however it ended."""


def show_batches(
    callbacks: Iterable[Callback], directory: Path, epoch: int, inputs: StageInputs, class_names: Sequence[str]
) -> None:
    """Show the callbacks two batches as the network gets them: one may be hardly mixed at all."""
    with closing(inputs.train(epoch, 0)) as batches:
        some = [(pixels[:8], targets[:8]) for pixels, targets in itertools.islice(batches, 2)]
    pixels, targets = (np.concatenate(parts) for parts in zip(*some, strict=True))
    for callback in callbacks:
        with only_warning(f"callback {type(callback).__name__}"):
            callback.see(directory, epoch, pixels, targets, class_names)


@recipe
class EarlyStopping(Callback):
    """End a stage when `monitor` has not improved by `min_delta` for `patience` epochs."""

    monitor: EpochMonitor = "val_loss"
    patience: Positive = 10
    min_delta: Annotated[float, Field(ge=0)] = 0.0

    @override
    def build(self, directory: Path) -> keras.callbacks.Callback:
        import keras

        attributes = ("wait", "best", "best_epoch", "stopped_epoch")

        class Stopping(keras.callbacks.EarlyStopping):
            def get_state(self) -> CallbackState:
                return {name: getattr(self, name) for name in attributes}, []

            def set_state(self, facts: dict[str, Any], arrays: list[np.ndarray]) -> None:
                for name in attributes:
                    setattr(self, name, facts[name])

        return Stopping(self.monitor, mode=direction(self.monitor), patience=self.patience, min_delta=self.min_delta)


@recipe
class BestWeights(Callback):
    """End a stage, however it ends, on the weights of its best epoch by `monitor`, of equal ones the earliest."""

    monitor: EpochMonitor = "val_loss"

    @override
    def build(self, directory: Path) -> keras.callbacks.Callback:
        import keras

        sign = 1 if direction(self.monitor) == "min" else -1
        monitor = self.monitor

        class KeepBest(keras.callbacks.Callback):
            best = np.inf
            weights: list[np.ndarray] | None = None

            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                value = sign * (logs or {}).get(monitor, np.inf)
                if value < self.best:
                    self.best, self.weights = value, [variable.numpy() for variable in self.params["moving"]]

            def on_train_end(self, logs: dict[str, float] | None = None) -> None:
                for variable, value in zip(self.params["moving"], self.weights or (), strict=self.weights is not None):
                    variable.assign(value)

            def get_state(self) -> CallbackState:
                return {"best": self.best, "found": self.weights is not None}, self.weights or []

            def set_state(self, facts: dict[str, Any], arrays: list[np.ndarray]) -> None:
                self.best, self.weights = facts["best"], arrays if facts["found"] else None

        return KeepBest()
