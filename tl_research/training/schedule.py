"""Learning-rate schedules: pure functions of a stage's progress, so that a resumed stage gets the right rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "cosine", "one_cycle", "exponential", "plateau"]

LAST = 0.01
"""The share of the stage's rate that `exponential` and `one_cycle` end at."""
ONE_CYCLE_START, ONE_CYCLE_RISE = 1 / 25, 0.3
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 3


def rate_factor(name: ScheduleName, step: int, total: int, warmup: float = 0.0) -> float:
    """Compute the share of the stage's rate at `step` of `total`, above 0 and at most 1.

    It rises linearly over the share `warmup` of the steps; then `constant` stays; `cosine` falls along half a cosine
    (Loshchilov & Hutter 2017, arXiv 1608.03983); `exponential` falls geometrically to a hundredth. `one_cycle` (Smith &
    Topin 2017, arXiv 1708.07120) rises along a cosine over `warmup`, or 0.3 where that is 0, and falls along another.
    `plateau` is `constant` here: `Plateau` lowers it.
    """
    if name == "one_cycle":
        return _one_cycle((step + 1) / total, warmup or ONE_CYCLE_RISE)
    rising = math.floor(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(total - rising, 1)
    if name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return LAST**progress if name == "exponential" else 1.0


def _one_cycle(progress: float, rise: float) -> float:
    if progress <= rise:
        start, end, part = ONE_CYCLE_START, 1.0, progress / rise
    else:
        start, end, part = 1.0, LAST, (progress - rise) / (1 - rise)
    return start + (end - start) * (1 - math.cos(math.pi * part)) / 2


@dataclass
class Plateau:
    """The state of `plateau`: multiply the rate by 0.3 when the validation loss has not fallen for 3 epochs."""

    factor: float = 1.0
    best: float = math.inf
    waited: int = 0

    def update(self, loss: float) -> None:
        """Count an epoch's validation loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= PLATEAU_PATIENCE:
            self.factor, self.waited = self.factor * PLATEAU_FACTOR, 0
