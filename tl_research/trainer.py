"""Trainer: compiles and fits one stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tl_research.progress import bar
from tl_research.recipe import Positive, recipe

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Row = dict[str, Any]


@recipe
class Trainer:
    """How every stage is fitted."""

    batch_size: Positive = 32

    def fit(
        self,
        model: keras.Model,
        train: tf.data.Dataset,
        val: tf.data.Dataset,
        optimizer: keras.Optimizer,
        *,
        stage: str,
        epochs: int,
        first_epoch: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> list[Row]:
        """Fits `model` (inputs -> logits) with cross-entropy and returns a row per epoch.

        Set what is trainable before: Keras reads it at compile, which is here, and ignores later changes.
        """
        import keras

        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # on a CPU XLA makes depthwise convolutions eight times slower
        )
        recorder = _recorder(stage, epochs)
        model.fit(
            train,
            validation_data=val,
            initial_epoch=first_epoch,
            epochs=first_epoch + epochs,
            callbacks=[recorder, *callbacks],
            shuffle=False,  # the datasets shuffle
            verbose=0,
        )
        return list(recorder.rows)


def _recorder(stage: str, epochs: int) -> Any:
    import keras

    class Recorder(keras.callbacks.Callback):
        """Keeps each epoch's row, adds rate and seconds to what the callbacks after it see, and draws the bar."""

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Row] = []
            self.bar = bar()
            self.task = self.bar.add_task(f"stage {stage}", total=epochs)

        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            self.bar.start()

        def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            assert logs is not None
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)
            logs["seconds"] = time.perf_counter() - self.began
            self.rows.append({"epoch": epoch, "stage": stage, **logs})
            told = f"stage {stage}  loss {logs['loss']:.3f}  val accuracy {logs['val_accuracy']:.3f}"
            self.bar.update(self.task, advance=1, description=told)

        def on_train_end(self, logs: dict[str, float] | None = None) -> None:
            self.bar.stop()

    return Recorder()
