"""TrainLoop: train one stage by epochs, from its beginning or from a checkpoint."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.strategy import broadcast_from_chief
from tl_research.backend.train_step import TrainStep
from tl_research.errors import DivergedError
from tl_research.runs.checkpoint import CheckpointState
from tl_research.system.progress import bar
from tl_research.training.schedule import Plateau, rate_factor
from tl_research.training.summary import show_epoch

if TYPE_CHECKING:
    import keras

    from tl_research.data.loader import Batch
    from tl_research.training.options import TrainOptions
    from tl_research.training.stage import Stage

EpochRow = dict[str, Any]


@dataclass
class TrainLoop:
    """The training of one stage.

    `batches(epoch, skip)` yields an epoch's batches from number `skip` on; epochs are counted over all stages.
    `validate` computes the metrics `val_...` of the current weights. `moving` are the variables that may change.
    `save(state, whole)` stores a state that `run` can continue from, `whole` if it is after an epoch. No epoch begins
    after `deadline` (`time.monotonic`).
    """

    name: str
    stage: Stage
    trainer: TrainOptions
    model: keras.Model
    step: TrainStep
    rate: float
    batches: Callable[[int, int], Iterator[Batch]]
    batches_per_epoch: int
    validate: Callable[[], Mapping[str, float]]
    callbacks: Sequence[keras.callbacks.Callback]
    save: Callable[[CheckpointState, bool], None]
    moving: Sequence[keras.Variable]
    first_epoch: int = 0
    accumulate: int = 1
    deadline: float = math.inf
    rows: list[EpochRow] = field(default_factory=list)
    _epoch: int = 0
    _done: int = 0
    """Updates so far in the current epoch."""
    _sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    """Sums over the current epoch: loss, correct predictions, examples."""
    _times: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """Seconds of the current epoch, and those of them spent waiting for batches."""
    _plateau: Plateau = field(default_factory=Plateau)
    _stopped: bool = False

    @property
    def updates_per_epoch(self) -> int:
        """Count the updates of an epoch."""
        return -(-self.batches_per_epoch // self.accumulate)

    def run(self, state: CheckpointState | None = None) -> list[EpochRow]:
        """Train, from `state` if there is one; return a row for each epoch.

        Raises:
            DivergedError: the loss is not finite. The callbacks have restored the best weights they have.
        """
        import keras

        callbacks = keras.callbacks.CallbackList(list(self.callbacks), model=self.model)
        epochs = self.first_epoch + self.stage.epochs
        callbacks.set_params({"epochs": epochs, "steps": self.updates_per_epoch, "moving": self.moving})
        self.model.stop_training = False
        callbacks.on_train_begin()
        if state is not None:
            self._restore(state)
        total = self.stage.epochs * self.updates_per_epoch
        try:
            with bar() as progress:
                task = progress.add_task(f"stage {self.name}", total=total)
                progress.update(task, completed=self._epoch * self.updates_per_epoch + self._done)
                while self._epoch < self.stage.epochs and not self._stopped:
                    self._run_epoch(callbacks, lambda text: progress.update(task, advance=1, description=text))
        except DivergedError:
            callbacks.on_train_end()
            raise
        self._use_averages()
        callbacks.on_train_end()
        return self.rows

    def _run_epoch(self, callbacks: Any, advance: Callable[[str], None]) -> None:
        number = self.first_epoch + self._epoch
        if not self._done:
            callbacks.on_epoch_begin(number)
        self._train(number, callbacks, advance)
        with self._averaged():
            row = self._row(number, broadcast_from_chief(self.step.strategy, self.validate()))
            if not math.isfinite(row["val_loss"]):  # the loss of the last update is that of the weights before it
                raise DivergedError(self.name, number, self._done, row["learning_rate"])
            self._plateau.update(row["val_loss"])
            logs = {key: value for key, value in row.items() if key not in ("epoch", "stage")}
            callbacks.on_epoch_end(number, logs)
        self.rows.append(row)
        show_epoch(row)
        self._epoch, self._done, self._sums, self._times = self._epoch + 1, 0, np.zeros(3), np.zeros(2)
        stops = self.model.stop_training or time.monotonic() > self.deadline
        self._stopped = broadcast_from_chief(self.step.strategy, {"stops": stops})["stops"] > 0
        self.save(self._state(), True)

    def _train(self, number: int, callbacks: Any, advance: Callable[[str], None]) -> None:
        """Make the remaining updates of an epoch."""
        saved = time.monotonic()
        began, before, waited = time.perf_counter(), self._times, 0.0
        pending: Any = None
        batches = self.batches(number, self._done * self.accumulate)
        with closing(batches):  # type: ignore[type-var]
            while True:
                requested = time.perf_counter()
                group = list(itertools.islice(batches, self.accumulate))
                waited += time.perf_counter() - requested
                if not group:
                    break
                callbacks.on_train_batch_begin(self._done)
                rate = self._rate(self._done)
                result = (*self.step(group, rate), sum(len(inputs) for inputs, _ in group), rate)
                # Reading the previous result only now lets a GPU begin this update meanwhile.
                self._count(pending)
                pending = result
                callbacks.on_train_batch_end(self._done)
                self._done += 1
                advance(self._progress_text())
                if time.monotonic() - saved > 60 * (self.trainer.checkpoint_minutes or math.inf):
                    self._count(pending)
                    pending, saved = None, time.monotonic()
                    self._times = before + np.array([time.perf_counter() - began, waited])
                    self.save(self._state(), False)
        self._count(pending)
        self._times = before + np.array([time.perf_counter() - began, waited])

    def _rate(self, number: int) -> float:
        """Compute the learning rate of an update of the current epoch."""
        step = self._epoch * self.updates_per_epoch + number
        total = self.stage.epochs * self.updates_per_epoch
        share = rate_factor(self.stage.schedule, step, total, self.stage.warmup)
        return self.rate * share * (self._plateau.factor if self.stage.schedule == "plateau" else 1.0)

    def _count(self, result: Any) -> None:
        if result is None:
            return
        loss, right, count, rate = float(result[0]), float(result[1]), result[2], result[3]
        if not math.isfinite(loss):
            raise DivergedError(self.name, self.first_epoch + self._epoch, self._done, rate)
        self._sums += (loss, right, count)

    def _progress_text(self) -> str:
        last = f"  val accuracy {self.rows[-1]['val_accuracy']:.3f}" if self.rows else ""
        loss = f"  loss {self._sums[0] / self._sums[2]:.3f}" if self._sums[2] else ""
        return f"stage {self.name}{loss}{last}"

    def _row(self, number: int, validated: Mapping[str, float]) -> EpochRow:
        loss, right, count = self._sums.tolist()
        seconds, waited = self._times.tolist()
        return {
            "epoch": number,
            "stage": self.name,
            "loss": loss / count,
            "accuracy": right / count,
            **validated,
            "learning_rate": self._rate(self._done - 1),
            "seconds": seconds,
            "data_wait": waited / seconds if seconds else 0.0,
        }

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the moving averages of the weights inside, if there are any."""
        weights = [variable.numpy() for variable in self.step.averaged]
        self._use_averages()
        yield
        for variable, value in zip(self.step.averaged, weights, strict=True):
            variable.assign(value)

    def _use_averages(self) -> None:
        for variable, average in zip(self.step.averaged, self.step.averages, strict=True):
            variable.assign(average)

    # Checkpoints, without the classifier's own variables

    def _state(self) -> CheckpointState:
        arrays = {f"step/{i}": variable.numpy() for i, variable in enumerate(self.step.variables)}
        callback_facts: dict[str, Any] = {}
        for number, callback in enumerate(self.callbacks):
            if hasattr(callback, "get_state"):
                callback_facts[str(number)], callback_arrays = callback.get_state()
                arrays |= {f"callback/{number}/{i}": array for i, array in enumerate(callback_arrays)}
        facts = {
            "epoch": self._epoch,
            "done": self._done,
            "sums": self._sums.tolist(),
            "times": self._times.tolist(),
            "plateau": asdict(self._plateau),
            "stopped": self._stopped,
            "rows": self.rows,
            "callbacks": callback_facts,
        }
        return CheckpointState(facts, arrays)

    def _restore(self, state: CheckpointState) -> None:
        facts = state.facts
        self._epoch, self._done, self._stopped = facts["epoch"], facts["done"], facts["stopped"]
        self._sums, self._times = np.array(facts["sums"]), np.array(facts["times"])
        self._plateau, self.rows = Plateau(**facts["plateau"]), list(facts["rows"])
        for i, variable in enumerate(self.step.variables):
            variable.assign(state.arrays[f"step/{i}"])
        for number, callback in enumerate(self.callbacks):
            if str(number) in facts["callbacks"]:
                count = sum(key.startswith(f"callback/{number}/") for key in state.arrays)
                arrays = [state.arrays[f"callback/{number}/{i}"] for i in range(count)]
                callback.set_state(facts["callbacks"][str(number)], arrays)
