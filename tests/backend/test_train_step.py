"""One update, compared to Keras' own: train_step, fused_adam, loss_scaling, weight_average; replicas: test_strategy."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.backend.train_step import Learning, OutOfMemoryError, StepOptions, TrainStep
from tl_research.models.trainable_plan import TrainablePlan
from tl_research.training import inputs


def update(plan: TrainablePlan, batches: np.ndarray) -> None:
    """Train a classifier by the real step, on images `(k, b, s, s, 3)` whose labels alternate."""
    learning = [Learning(variable, part.rate) for part in plan.parts for variable in part.learning]
    step = TrainStep(inputs.training_forward(plan), learning, plan.statistics, keras.optimizers.Adam())
    targets = np.eye(plan.head.output_shape[-1], dtype=np.float32)[np.arange(batches.shape[1]) % 2]
    for pixels in batches:
        step([(pixels, targets)], 1e-2)


RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(12, 5)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 12)]
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(),
    "adam of other betas": lambda: keras.optimizers.Adam(beta_1=0.5, beta_2=0.8, epsilon=0.01),
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(weight_decay=0.1),
    "sgd": lambda: keras.optimizers.SGD(momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(momentum=0.5),
}


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def step_of(
    model: keras.Model,
    optimizer: str = "adam",
    rates: Sequence[float] = (1, 1, 1, 1),
    **options: float,
) -> TrainStep:
    learning = [Learning(v, rate) for v, rate in zip(model.trainable_variables, rates, strict=True)]
    chosen = StepOptions(**options)  # type: ignore[arg-type]
    return TrainStep(lambda x: model(x, training=True), learning, [], OPTIMIZERS[optimizer](), chosen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_equals_that_of_keras(optimizer: str) -> None:
    model, reference = network(), network()
    step = step_of(model, optimizer)
    chosen = OPTIMIZERS[optimizer]()
    chosen.learning_rate = 0.05
    chosen.exclude_from_weight_decay(var_names=["bias"])
    reference.compile(chosen, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    for _ in range(3):
        loss, _ = step([(ROWS, TARGETS)], 0.05)
        expected = reference.train_on_batch(ROWS, TARGETS)
        assert float(loss) / 12 == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_each_variable_has_its_own_rate() -> None:
    model = network()
    before = model.get_weights()
    step_of(model, "sgd", rates=(0, 0, 0.5, 1))([(ROWS, TARGETS)], 0.1)
    moved = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved[0] == moved[1] == 0
    whole = network()
    step_of(whole, "sgd")([(ROWS, TARGETS)], 0.1)
    assert moved[2] == pytest.approx(np.abs(before[2] - whole.get_weights()[2]).max() / 2, rel=1e-4)


def test_clip_norm_bounds_the_gradient() -> None:
    model = network()
    before = model.get_weights()
    step = TrainStep(
        lambda x: model(x), [Learning(v) for v in model.trainable_variables], [], keras.optimizers.SGD(),
        StepOptions(clip_norm=0.01),
    )  # fmt: skip
    step([(ROWS, TARGETS)], 1.0)
    length = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, model.get_weights(), strict=True)))
    assert length == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_equals_that_of_keras() -> None:
    model, logits = network(), network()(ROWS)
    loss, right = step_of(model, label_smoothing=0.2)([(ROWS, TARGETS)], 0.0)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(TARGETS, logits)
    assert float(loss) / 12 == pytest.approx(float(expected), rel=1e-5)
    assert int(right) == int(np.sum(np.argmax(logits, 1) == TARGETS.argmax(1)))


def test_averages_follow_the_weights() -> None:
    model = network()
    step = step_of(model, "sgd", ema=0.5)
    expected = model.get_weights()
    for number in range(1, 5):
        step([(ROWS, TARGETS)], 0.1)
        decay = min(0.5, number / (9 + number))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, model.get_weights(), strict=True)]
    for average, value in zip(step.averages, expected, strict=True):
        np.testing.assert_allclose(np.array(average), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loss_scaling_keeps_updates_and_skips_overflows(optimizer: str) -> None:
    model, reference = network(), network()
    scaled, plain = step_of(model, optimizer, loss_scale=True, ema=0.5), step_of(reference, optimizer)
    scaled([(ROWS, TARGETS)], 0.05), plain([(ROWS, TARGETS)], 0.05)
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    before, scale = model.get_weights(), float(scaled.variables[-2])
    state = [np.array(variable) for variable in scaled.variables[:-2]]
    scaled([(ROWS * np.float32(np.inf), TARGETS)], 0.05)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for variable, value in zip(scaled.variables[:-2], state, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    assert float(scaled.variables[-2]) == scale / 2


def test_all_batch_sizes_share_one_trace() -> None:
    traced = []
    model = network()

    def forward(rows: object) -> object:
        traced.append(1)
        return model(rows)

    step = TrainStep(forward, [Learning(v) for v in model.trainable_variables], [], keras.optimizers.Adam())
    for count in (12, 7, 1, 12):
        step([(ROWS[:count], TARGETS[:count])], 0.01)
    assert len(traced) == 1


def test_a_batch_too_large_for_memory_is_out_of_memory() -> None:
    def forward(_: object) -> object:
        raise tf.errors.ResourceExhaustedError(None, None, "simulated")

    step = TrainStep(forward, [Learning(v) for v in network().trainable_variables], [], keras.optimizers.Adam())
    with pytest.raises(OutOfMemoryError, match="simulated"):
        step.rehearse((ROWS, TARGETS))
