"""Stages of training: recipes. A transfer option is a named, ordered dict of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_research.models.classifier import BatchNorm, Parameters
from tl_research.recipe import Count, Positive, Rate, Share, recipe
from tl_research.training.optimizer import Adam, GradientOptimizer, Optimizer
from tl_research.training.schedule import ScheduleName

Unfreeze = Count | Literal["all"]


@recipe
class Stage:
    """One stage of training. The head always learns; of the backbone, `unfreeze` blocks from the top do (0 none, `all`
    everything), and of these the `parameters`: `all`, or only `batch_norm` (gamma and beta) or `bias` (beta too).

    Early stopping may end a stage before its `epochs`; a head solved by `optimizer=lbfgs` has none. `learning_rate`,
    `optimizer` and `bn` are the run's unless given here. The rate follows `schedule` after a linear `warmup` over that
    share of the stage's steps, and is multiplied by `layer_decay` for each block further from the head (Howard & Ruder
    2018, arXiv 1801.06146). With `random_weights` the run starts from random weights, whatever `backbone.weights` says.
    """

    epochs: Positive
    unfreeze: Unfreeze = 0
    parameters: Parameters = "all"
    learning_rate: Rate | None = None
    schedule: ScheduleName = "constant"
    warmup: Share = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: Optimizer | None = None
    bn: BatchNorm | None = None
    random_weights: bool = False

    @property
    def trains_backbone(self) -> bool:
        """Return whether anything below the head learns; if not, the stage can run on features."""
        return self.unfreeze != 0

    def optimizer_for(self, run_optimizer: Optimizer) -> Optimizer:
        """Choose the stage's own optimizer, else the run's; Adam if that is L-BFGS, which solves heads only."""
        chosen = self.optimizer or run_optimizer
        if self.trains_backbone and not isinstance(chosen, GradientOptimizer):
            return Adam()
        return chosen
