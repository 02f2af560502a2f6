"""The training loop on networks of a few weights, and in whole runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.experiment.test_experiment import run, table
from tl_research import InputError, Run, compose
from tl_research.backend.train_step import Learning, OutOfMemoryError, TrainStep
from tl_research.data.loader import Batch, rows_epoch
from tl_research.errors import DivergedError
from tl_research.metrics.classification import accuracy_and_loss
from tl_research.runs.checkpoint import CheckpointState
from tl_research.training import inputs
from tl_research.training.callbacks import BestWeights, EarlyStopping
from tl_research.training.class_balance import UNIFORM
from tl_research.training.loop import TrainLoop
from tl_research.training.options import TrainOptions
from tl_research.training.stage import Stage

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40)
Change = Callable[[int, int, Batch], Batch]
"""A batch, by its epoch and its number."""


class Rates(keras.optimizers.SGD):
    """Record the rate of each update of a variable."""

    seen: list[float]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        tf.py_function(lambda rate: self.seen.append(float(rate)), [learning_rate], [])
        super().update_step(gradient, variable, learning_rate)


class Notes(keras.callbacks.Callback):
    """Record the weights after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.weights.append(self.model.get_weights())


class Small:
    """A small network, and training loops for it with defaults."""

    def __init__(self, *, dropout: float = 0.0, start: list[np.ndarray] | None = None) -> None:
        keras.utils.set_random_seed(0)
        hidden = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(dropout)]
        self.model = keras.Sequential([keras.Input((5,)), *hidden, keras.layers.Dense(3, use_bias=False)])
        for variable, value in zip(self.model.variables, start or (), strict=bool(start)):
            variable.assign(value)
        self.judged: list[list[np.ndarray]] = []
        """The weights at each validation."""
        self.saved: list[tuple[CheckpointState, list[np.ndarray], bool]] = []

    def fit(
        self,
        *,
        batch_size: int = 10,
        optimizer: keras.Optimizer | None = None,
        losses: list[float] | None = None,
        change: Change | None = None,
        epochs: int = 2,
        stage: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> TrainLoop:
        """Make a loop. `losses` replace the validation losses; `change` replaces batches."""
        train_options = TrainOptions(**{"checkpoint_minutes": None, **(trainer or {})})
        step = TrainStep(
            lambda rows: self.model(rows, training=True),
            [Learning(variable) for variable in self.model.trainable_variables],
            [],
            optimizer or keras.optimizers.SGD(momentum=0.9),
            train_options.options(UNIFORM),
            accumulates=train_options.accumulate > 1,
        )

        def batches(epoch: int, skip: int) -> Iterator[Batch]:
            originals = rows_epoch(ROWS, LABELS, 3, batch_size, epoch=epoch, skip=skip, seed=0)
            for number, batch in enumerate(originals, skip):
                yield change(epoch, number, batch) if change else batch

        def validate() -> dict[str, float]:
            self.judged.append(self.model.get_weights())
            scores = accuracy_and_loss(np.asarray(self.model(ROWS, training=False)), LABELS)
            loss = losses[len(self.judged) - 1] if losses else scores["loss"]
            return {"val_accuracy": scores["accuracy"], "val_loss": loss}

        def save(state: CheckpointState, whole: bool) -> None:
            facts = json.loads(json.dumps(state.facts))
            arrays = {name: np.array(array) for name, array in state.arrays.items()}
            self.saved.append((CheckpointState(facts, arrays), [np.array(v) for v in self.model.variables], whole))

        options: dict[str, Any] = {
            "callbacks": [],
            "accumulate": train_options.accumulate,
            "rate": 0.1,
            "moving": self.model.variables,
            **more,
        }
        return TrainLoop(
            name="head", stage=Stage(epochs=epochs, **(stage or {})), trainer=train_options, model=self.model,
            step=step, batches=batches, batches_per_epoch=-(-40 // batch_size), validate=validate, save=save, **options,
        )  # fmt: skip


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# Rates


def test_each_update_has_the_rate_of_its_step_in_the_stage() -> None:
    optimizer = Rates()
    optimizer.seen = []
    stage = {"schedule": "cosine", "warmup": 0.25}
    fit = Small().fit(
        batch_size=5, trainer={"accumulate": 2}, optimizer=optimizer, epochs=3, stage=stage, first_epoch=7
    )
    rows = fit.run()
    seen = np.reshape(optimizer.seen, (12, 3))  # 3 epochs of 4 updates of 3 variables
    falling = [(1 + math.cos(math.pi * k / 9)) / 2 for k in range(9)]
    np.testing.assert_allclose(seen, np.outer([0.025, 0.05, 0.075, *(0.1 * x for x in falling)], np.ones(3)), rtol=1e-5)
    assert [row["learning_rate"] for row in rows] == pytest.approx(seen[3::4, 0].tolist(), rel=1e-5)
    assert [row["epoch"] for row in rows] == [7, 8, 9]


def test_a_plateau_lowers_the_rate_of_later_epochs() -> None:
    losses = [1.0, 2.0, 2.0, 2.0, 2.0, 0.5]
    rows = Small().fit(losses=losses, epochs=6, stage={"schedule": "plateau"}).run()
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.03, 0.03])
    constant = Small().fit(losses=losses, epochs=6).run()
    assert [row["learning_rate"] for row in constant] == [0.1] * 6


# Updates


def test_accumulating_two_batches_of_8_equals_one_of_16() -> None:
    two, one = Small(), Small()
    halves = two.fit(batch_size=8, trainer={"accumulate": 2, "clip_norm": 0.5}, callbacks=[notes := Notes()])
    whole = one.fit(batch_size=16, trainer={"clip_norm": 0.5})
    rows, expected = halves.run(), whole.run()
    assert len(notes.weights) == 6  # of 5 batches, twice: the last update of an epoch has one batch of 8
    assert int(halves.step.optimizer.iterations) == int(whole.step.optimizer.iterations) == 6
    for a, b in zip(two.model.get_weights(), one.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["accuracy"] == other["accuracy"]


def test_history_has_means_over_all_examples() -> None:
    small = Small()
    (row,) = small.fit(batch_size=16, epochs=1, rate=1e-20).run()
    expected = accuracy_and_loss(np.asarray(small.model(ROWS)), LABELS)
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert row["accuracy"] == expected["accuracy"]


def test_history_has_the_share_of_time_spent_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def takes(seconds: float, value: Any) -> Any:
        clock[0] += seconds
        return value

    update = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda *given: takes(1.0, update(*given)))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for row in Small().fit(change=lambda _, number, batch: takes(3.0 if number else 7.0, batch)).run():
        assert row["seconds"] == 20
        assert row["data_wait"] == 16 / 20


# Averages


def test_averages_are_validated_while_weights_are_trained() -> None:
    plain, averaged = Small(), Small()
    notes, others = Notes(), Notes()
    average: list[Any] = plain.model.get_weights()
    plain.fit(callbacks=[notes]).run()
    averaged.fit(callbacks=[others], trainer={"ema": 0.5}).run()
    for trained, expected in zip(others.weights, notes.weights, strict=True):
        assert equal(trained, expected), "averages must not affect training"
    for number, weights in enumerate(notes.weights, 1):
        decay = min(0.5, number / (9 + number))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
        if number % 4 == 0:
            for a, b in zip(averaged.judged[number // 4 - 1], average, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert equal(averaged.model.get_weights(), averaged.judged[-1])
    assert not equal(averaged.model.get_weights(), notes.weights[-1])


def test_the_best_weights_are_averages(tmp_path: Path) -> None:
    small = Small()
    small.fit(trainer={"ema": 0.9}, losses=[0.1, 0.2, 0.3], epochs=3, callbacks=[BestWeights().build(tmp_path)]).run()
    assert equal(small.model.get_weights(), small.judged[0])


# Ends


def test_early_stopping_ends_on_the_best_weights(tmp_path: Path) -> None:
    small = Small()
    callbacks = [EarlyStopping(patience=2).build(tmp_path), BestWeights().build(tmp_path)]
    rows = small.fit(epochs=9, losses=[1.0, 0.8, 0.9, 0.8, 0.1], callbacks=callbacks).run()
    assert len(rows) == 4
    assert equal(small.model.get_weights(), small.judged[1])
    assert small.saved[-1][0].facts["stopped"]


def test_the_deadline_ends_a_stage_after_the_current_epoch() -> None:
    small = Small()
    (row,) = small.fit(epochs=9, deadline=time.monotonic()).run()
    assert row["epoch"] == 0
    assert len(small.judged) == 1
    assert len(Small().fit(epochs=3, deadline=time.monotonic() + 1000).run()) == 3


def broken_at(epoch: int, number: int) -> Change:
    def change(e: int, n: int, batch: Batch) -> Batch:
        return (np.full_like(batch[0], np.nan), batch[1]) if (e, n) == (epoch, number) else batch

    return change


@pytest.mark.parametrize("number", [0, 2, 3])
def test_divergence_names_its_place_and_keeps_the_best_weights(tmp_path: Path, number: int) -> None:
    small = Small()
    fit = small.fit(epochs=9, change=broken_at(7, number), losses=[0.1, 0.2, 0.3], first_epoch=5,
                    stage={"schedule": "exponential"}, callbacks=[BestWeights().build(tmp_path)])  # fmt: skip
    with pytest.raises(DivergedError, match=r"^stage head diverged: .*transfer\.head\.learning_rate") as raised:
        fit.run()
    error = raised.value
    assert (error.stage, error.epoch, error.update) == ("head", 7, number + 1)
    assert error.rate == pytest.approx(0.1 * 0.01 ** ((8 + number) / 36))
    assert [row["epoch"] for row in fit.rows] == [5, 6]
    assert equal(small.model.get_weights(), small.judged[0])


def test_divergence_in_the_last_update_is_noticed(tmp_path: Path) -> None:
    small = Small()
    fit = small.fit(losses=[0.1, math.nan], callbacks=[BestWeights().build(tmp_path)])
    with pytest.raises(DivergedError) as raised:
        fit.run()
    assert (raised.value.epoch, raised.value.update) == (1, 4)
    assert len(fit.rows) == 1
    assert equal(small.model.get_weights(), small.judged[0])


# Checkpoints


def callbacks(directory: Path) -> list[keras.callbacks.Callback]:
    return [EarlyStopping(patience=2).build(directory), Notes(), BestWeights().build(directory)]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in rows]


def test_a_stage_resumes_from_any_state_to_the_same_bits(tmp_path: Path) -> None:
    losses = [1.0, 1.1, 0.5, 0.6, 0.6, 0.1]
    options: dict[str, Any] = {
        "batch_size": 8,
        "epochs": 7,
        "first_epoch": 3,
        "stage": {"schedule": "plateau", "warmup": 0.1},
        "trainer": {"accumulate": 2, "ema": 0.7, "checkpoint_minutes": 1e-9},
    }
    whole = Small(dropout=0.3)
    rows = whole.fit(losses=losses, callbacks=callbacks(tmp_path), **options).run()
    assert len(rows) == 5
    assert [done for *_, done in whole.saved] == [False, False, False, True] * 5
    for index in (1, 3, 10, 18, 19):
        state, weights, _ = whole.saved[index]
        again = Small(dropout=0.3, start=weights)
        left = losses[len(state.facts["rows"]) :]
        resumed = again.fit(losses=left, callbacks=callbacks(tmp_path), **options).run(state)
        assert without_times(resumed) == without_times(rows)
        assert equal([np.array(v) for v in again.model.variables], [np.array(v) for v in whole.model.variables])
        again.saved = [*whole.saved[: index + 1], *again.saved]
        for (one, here, _), (other, there, _) in zip(whole.saved, again.saved, strict=True):
            assert one.arrays.keys() == other.arrays.keys()
            assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
            assert equal(here, there)


def test_time_before_a_checkpoint_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slowly(_: int, number: int, batch: Batch) -> Batch:
        clock[0] += 3.0
        return batch

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    small = Small()
    options: dict[str, Any] = {"change": slowly, "epochs": 1, "trainer": {"checkpoint_minutes": 1e-9}}
    (row,) = small.fit(**options).run()
    assert row["seconds"] == 12
    state, weights, _ = small.saved[1]
    (row,) = Small(start=weights).fit(**options).run(state)
    assert row["seconds"] == 12
    assert row["data_wait"] == 1


# Whole runs


def test_a_diverged_run_keeps_the_best_of_its_stages(tmp_path: Path, colours: Path) -> None:
    options = ["transfer=finetune", "transfer.backbone.epochs=3", "transfer.backbone.learning_rate=1e15",
               "transfer.backbone.schedule=constant", "transfer.backbone.warmup=0"]  # fmt: skip
    with pytest.raises(InputError, match=r"^stage backbone diverged: .* at update 1 of epoch \d, .* rate of 1e\+15;"):
        run(tmp_path / "run", colours, *options)
    done = Run.open(tmp_path / "run")
    assert done.status["state"] == "diverged"
    assert "at a learning rate of 1e+15" in done.status["reason"]
    model = done.model()
    original = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    assert equal(model.get_layer("backbone").get_weights(), original.get_weights())
    assert np.abs(model.get_layer("head").get_weights()[0]).max() > 0
    assert table(tmp_path / "run" / "history.csv")[0]["stage"] == "head"


@pytest.mark.parametrize("head", ["linear", "prototype"])
def test_a_time_limit_skips_the_remaining_stages(tmp_path: Path, colours: Path, head: str) -> None:
    done = run(tmp_path / "run", colours, "transfer=finetune", "trainer.time_limit=1e-9", "callbacks=none",
               f"head={head}")  # fmt: skip
    assert done.status["state"] == "done"
    assert [row["stage"] for row in table(done.directory / "history.csv")] == ["head"]
    assert done.metrics["test_accuracy"] > 0.9


# `trainer.batch_size=auto`, on a simulated GPU whose memory holds at most `most` examples


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> list[list[int]]:
    """Simulate the GPU; return a list that collects the batch sizes of each update."""
    updates: list[list[int]] = []
    rehearse, update = TrainStep.rehearse, TrainStep.__call__

    def limited(self: TrainStep, batch: Batch) -> None:
        if len(batch[0]) > most:
            raise OutOfMemoryError("simulated")
        rehearse(self, batch)

    def noted(self: TrainStep, batches: list[Batch], rate: float) -> Any:
        updates.append([len(pixels) for pixels, _ in batches])
        return update(self, batches, rate)

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    monkeypatch.setattr(TrainStep, "rehearse", limited)
    monkeypatch.setattr(TrainStep, "__call__", noted)
    return updates


AUTO = ("transfer=scratch", "transfer.all.epochs=1", "callbacks=none", "trainer.precision=float32", "engine=openvino")


@pytest.mark.slow
def test_a_batch_is_halved_until_it_fits_into_memory(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = limit(monkeypatch, 8)
    metrics = run(tmp_path / "run", colours, *AUTO, "trainer.batch_size=auto").metrics
    assert (metrics["batch_size"], metrics["accumulate"]) == (8, 4)
    whole, left = divmod(metrics["num_train"], 8)
    assert updates == [[8] * whole + [left] * (left > 0)]


def test_a_gpu_too_small_for_one_image_is_an_input_error(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = limit(monkeypatch, 0)
    with pytest.raises(InputError, match=r"^trainer\.batch_size=auto: not one image fits into the GPU's memory$"):
        run(tmp_path / "run", colours, *AUTO, "trainer.batch_size=auto")
    assert not updates
    assert Run.open(tmp_path / "run").status["state"] == "failed"


@pytest.mark.parametrize("most", [12, 11])
def test_trying_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    limit(monkeypatch, most)
    parts = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *parts])
    learning = [Learning(variable) for variable in model.trainable_variables]
    step = TrainStep(lambda rows: model(rows, training=True), learning, [], keras.optimizers.Adam())
    feed = SimpleNamespace(train=lambda epoch, skip: rows_epoch(ROWS, LABELS, 3, 12, seed=0))
    before = [np.array(variable) for variable in [*model.variables, *step.variables]]
    assert inputs.fits_in_memory(step, feed, model.variables) == (most >= 12)  # type: ignore[arg-type]
    assert equal([np.array(variable) for variable in [*model.variables, *step.variables]], before)


def test_on_a_cpu_no_batch_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert inputs.fits_in_memory(None, None, [])  # type: ignore[arg-type]
