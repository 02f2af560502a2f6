"""A stage's inputs and its train step, made together: both depend on the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tl_research.backend.train_step import Learning, TrainStep
from tl_research.errors import InputError
from tl_research.training.inputs import StageInputs, fits_in_memory

if TYPE_CHECKING:
    import keras

    from tl_research.backend.strategy import Strategy
    from tl_research.models.trainable_plan import TrainablePlan
    from tl_research.training.class_balance import ClassBalance
    from tl_research.training.options import TrainOptions


def make_step(
    build_inputs: Callable[[int], StageInputs],
    build_optimizer: Callable[[], keras.Optimizer],
    plan: TrainablePlan,
    trainer: TrainOptions,
    balance: ClassBalance,
    strategy: Strategy | None,
    changing: Sequence[keras.Variable],
    *,
    loss_scale: bool,
) -> tuple[StageInputs, TrainStep, dict[str, int]]:
    """Build inputs of a batch size, and the step; returns also `batch_size` and `accumulate`, as metrics.

    `trainer.batch_size=auto` halves the batch until it fits into a GPU's memory, and leaves an update as many examples
    as before. `changing` are the variables that trying it may change, and which are restored.

    Raises:
        InputError: not one image fits.
    """
    auto = trainer.batch_size == "auto"
    size, accumulate = 32 if auto else int(trainer.batch_size), trainer.accumulate
    learning = [Learning(variable, part.rate) for part in plan.parts for variable in part.learning]
    while True:
        inputs = build_inputs(size)
        step = TrainStep(
            inputs.forward,
            learning,
            plan.statistics,
            build_optimizer(),
            trainer.options(balance, loss_scale=loss_scale),
            strategy,
            accumulates=accumulate > 1,
        )
        if not auto or inputs.kind == "features" or fits_in_memory(step, inputs, changing):
            return inputs, step, {"batch_size": size, "accumulate": accumulate}
        size, accumulate = size // 2, 2 * accumulate
        if not size:
            raise InputError("trainer.batch_size=auto: not one image fits into the GPU's memory")
