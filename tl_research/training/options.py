"""The options of training that all stages of a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tl_research.backend.precision import Precision
from tl_research.backend.strategy import Distribution
from tl_research.backend.train_step import StepOptions
from tl_research.recipe import Positive, Rate, Share, recipe
from tl_research.training.class_balance import ClassBalance, class_balance

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule


@recipe
class TrainOptions:
    """Options of training that all stages share.

    Each update sums the gradients of `accumulate` batches of `batch_size` examples; `auto` is 32, halved until it fits
    a GPU's memory. `clip_norm` bounds the norm of the gradient. `ema` is the decay of an exponential moving average of
    the weights, which is validated and kept. Layers compute in `precision`; weights stay float32. Training ends
    `time_limit` minutes after the run began. A checkpoint is written after every epoch, and every `checkpoint_minutes`.

    `class_weights` weight the classes in the loss: `balanced`, or a mapping from names; `logit_adjustment` is the tau
    of Menon et al. (2021). Both count for heads that are solved, too; see `class_balance`.
    """

    batch_size: Positive | Literal["auto"] = 32
    accumulate: Positive = 1
    clip_norm: Rate | None = None
    label_smoothing: Share = 0.0
    class_weights: Literal["balanced"] | dict[str, Rate] | None = None
    logit_adjustment: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Precision = "auto"
    distribution: Distribution = "none"
    time_limit: Rate | None = None
    checkpoint_minutes: Rate | None = 10.0

    def options(self, balance: ClassBalance, *, loss_scale: bool = False) -> StepOptions:
        """Give the options of a train step."""
        parts = (None if part is None else tuple(part.tolist()) for part in (balance.weights, balance.offsets))
        return StepOptions(self.clip_norm, self.label_smoothing, self.ema, loss_scale, *parts)

    def balance(self, data: DataModule, *splits: str) -> ClassBalance:
        """Make weights and offsets of the classes from the images of these splits. Raises `InputError`, see
        `class_balance`."""
        labels = data.labels[data.indices(*splits)]
        return class_balance(self.class_weights, self.logit_adjustment, labels, data.class_names)
