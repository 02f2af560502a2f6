"""How every stage of a run is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_research.backend.precision import Precision
from tl_research.backend.strategy import Distribution
from tl_research.backend.train_step import StepOptions
from tl_research.recipe import Positive, Rate, Share, recipe


@recipe
class TrainOptions:
    """How every stage is fitted.

    An update sees `batch_size` examples, `accumulate` times, whose gradients are summed before it; `auto` is 32,
    divided where a GPU's memory is too small. `clip_norm` bounds the length of the gradient. `ema` trains on, and
    ends on, an exponential moving average of the weights that keeps so much of itself at each update. `precision` is
    what layers compute in; weights stay float32. `time_limit` minutes after its beginning a run trains no longer. A
    checkpoint is written after every epoch, and within one every `checkpoint_minutes`.
    """

    batch_size: Positive | Literal["auto"] = 32
    accumulate: Positive = 1
    clip_norm: Rate | None = None
    label_smoothing: Share = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Precision = "auto"
    distribution: Distribution = "none"
    time_limit: Rate | None = None
    checkpoint_minutes: Rate | None = 10.0

    def options(self, *, loss_scale: bool = False) -> StepOptions:
        """Those of a step."""
        return StepOptions(self.clip_norm, self.label_smoothing, self.ema, loss_scale)
