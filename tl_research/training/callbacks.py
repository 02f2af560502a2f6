"""Callbacks: recipes, built anew for each stage, so that no state leaks from one stage into the next."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from tl_research.metrics.classification import direction
from tl_research.recipe import Count, Positive, recipe

if TYPE_CHECKING:
    import keras

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
                    self.best, self.weights = value, [np.array(variable) for variable in self.params["moving"]]

            def on_train_end(self, logs: dict[str, float] | None = None) -> None:
                for variable, value in zip(self.params["moving"], self.weights or (), strict=self.weights is not None):
                    variable.assign(value)

            def get_state(self) -> CallbackState:
                return {"best": self.best, "found": self.weights is not None}, self.weights or []

            def set_state(self, facts: dict[str, Any], arrays: list[np.ndarray]) -> None:
                self.best, self.weights = facts["best"], arrays if facts["found"] else None

        return KeepBest()


@recipe
class TensorBoard(Callback):
    """Scalars of each epoch over one continuous axis, and at the end a confusion matrix, sample predictions and the
    HParams view, in `tensorboard/` of the run directory."""

    samples: Count = 16

    @override
    def build(self, directory: Path) -> keras.callbacks.Callback:
        import keras
        import tensorflow as tf

        writer = tf.summary.create_file_writer(str(directory / "tensorboard"))

        class Scalars(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                with writer.as_default(step=epoch):
                    for name, value in (logs or {}).items():
                        tf.summary.scalar(_tag(name), value)
                writer.flush()  # a run that is killed and resumed has the points of all its epochs

            def on_train_end(self, logs: dict[str, float] | None = None) -> None:
                writer.close()

        return Scalars()

    @override
    def see(
        self, directory: Path, epoch: int, pixels: np.ndarray, targets: np.ndarray, class_names: Sequence[str]
    ) -> None:
        import tensorflow as tf

        from tl_research.reports import figures

        writer = tf.summary.create_file_writer(str(directory / "tensorboard"))
        with writer.as_default(step=epoch):
            _image("train/batch", figures.batch(pixels, targets, class_names))
        writer.close()

    @override
    def finish(self, directory: Path, results: Results) -> None:
        """Adds what is known only at the end."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hp

        from tl_research.reports import figures

        writer = tf.summary.create_file_writer(str(directory / "tensorboard"))
        with writer.as_default(step=0):
            matrix = figures.confusion_matrix(results.labels, results.logits.argmax(axis=1), results.class_names)
            _image("test/confusion_matrix", matrix)
            if self.samples and results.samples:
                page = figures.predictions(results.samples[: self.samples], results.class_names)
                _image("test/predictions", page)
            scalars = {k: v for k, v in results.metrics.items() if k.startswith(("val_", "test_")) and v is not None}
            # No hparams_config: of all runs TensorBoard believes one, which lacks the others' keys. Without any it puts
            # all runs together, what differs first.
            hp.hparams(dict(results.hyperparameters), trial_id="/".join(directory.parts[-2:]))
            for name, value in scalars.items():
                tf.summary.scalar(f"final/{name}", value)
        writer.close()


def _image(tag: str, pixels: np.ndarray) -> None:
    """`tf.summary.image` of one picture, whose own PNG encoder takes longer than drawing it did."""
    import tensorflow as tf
    from PIL import Image
    from tensorboard.plugins.image import metadata

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png", compress_level=3)
    height, width = pixels.shape[:2]
    content = tf.constant([str(width).encode(), str(height).encode(), png.getvalue()])
    tf.summary.write(tag, content, metadata=metadata.create_summary_metadata(None, None))


def _tag(name: str) -> str:
    """`val_loss` -> `loss/val`: TensorBoard groups by what stands before the slash."""
    if name in ("learning_rate", "seconds", "data_wait"):
        return f"stage/{name}"
    return f"{name.removeprefix('val_')}/{'val' if name.startswith('val_') else 'train'}"
