"""Trains on one device and on two logical CPUs, which must be there before TensorFlow begins: a process of its own.

`python -m tests.support.mirrored steps` prints the differences between train steps on one and two devices, as JSON;
`python -m tests.support.mirrored run DIR OVERRIDES...` does a whole run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_research import compose
from tl_research.backend.strategy import Distribution, open_strategy, sync_batch_norm
from tl_research.backend.train_step import Learning, StepOptions, TrainStep
from tl_research.models.classifier import build_classifier
from tl_research.models.trainable_plan import resolve_plan
from tl_research.system.process import exit_now
from tl_research.training import inputs

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (24, 16, 16, 3)).astype(np.uint8)
TARGETS = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 24)]
SIZES = (8, 8, 7, 1)


def two_devices() -> None:
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def classifier() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(pixels)
    for filters in (4, 6):
        x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    backbone = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="backbone")
    head = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="logits")], name="head")
    return build_classifier(backbone, head)


def trained(
    name: Distribution, batch_norm: Any, accumulate: int, synchronized: bool, options: StepOptions
) -> list[np.ndarray]:
    """Return the results of each update, and all variables: weights, statistics, the optimizer's state, averages."""
    import keras

    with open_strategy(name, "") as strategy:
        model = classifier()
        plan = resolve_plan(model, "all", batch_norm)
        with sync_batch_norm(strategy if synchronized else None, model):
            step = TrainStep(
                inputs.training_forward(plan),
                [Learning(variable) for variable in plan.learning],
                plan.statistics,
                keras.optimizers.SGD(momentum=0.9, weight_decay=0.01),
                options,
                strategy,
                accumulates=accumulate > 1,
            )
            results = [np.array([float(x) for x in step(group, 0.05)]) for group in groups(accumulate)]
        return [*results, *(variable.numpy() for variable in [*model.variables, *step.variables])]


def groups(accumulate: int) -> list[Sequence[tuple[np.ndarray, np.ndarray]]]:
    """Return the batches of three epochs with batches of different sizes."""
    ends = np.cumsum(SIZES)
    batches = [(PIXELS[end - size : end], TARGETS[end - size : end]) for end, size in zip(ends, SIZES, strict=True)] * 3
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def apart(batch_norm: str, accumulate: int = 1, synchronized: bool = True, **options: Any) -> float:
    """Return the largest difference between one device and two; the numbers are of the order of 1."""
    chosen = StepOptions(**options)
    one, two = (trained(name, batch_norm, accumulate, synchronized, chosen) for name in ("none", "mirrored"))
    return max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(one, two, strict=True))


def main() -> None:
    two_devices()
    if sys.argv[1] == "run":
        compose(sys.argv[3:]).run(sys.argv[2])
        return
    differences = {
        "frozen": apart("frozen", clip_norm=0.5, ema=0.9, label_smoothing=0.1),
        "train": apart("train", accumulate=2, clip_norm=0.5, ema=0.9),
        "float16": apart("adapt", loss_scale=True),
        "each by its own share": apart("train", synchronized=False),
    }
    sys.stdout.write(json.dumps(differences))


if __name__ == "__main__":
    main()
    exit_now(0)
