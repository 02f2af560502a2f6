"""Estimate from the first updates how many epochs there is time for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from tl_research.training.loop import TrainLoop
from tl_research.training.stage import Stage


class TooSlowError(Exception):
    """There is no time for one epoch."""


@dataclass
class EpochBudget:
    """The epochs that stages may have until `limit` (`time.monotonic`): each of their `epochs` costs `cost` times the
    training of one. `share` of them fit, as soon as the first updates have been measured."""

    epochs: int
    cost: float
    limit: float = math.inf
    share: float = 1.0
    _is_measured: bool = False

    def shortened(self, stage: Stage) -> Stage:
        """Return a stage with the epochs that fit, so that its schedule ends with them."""
        return replace(stage, epochs=max(1, int(stage.epochs * self.share)))

    def measure(self, loop: TrainLoop) -> None:
        """Measure the first updates of a loop, and shorten its stage to what fits; the loop raises `TooSlowError` where
        that is less than an epoch. Nothing is done without a limit, or where updates have been measured before."""
        if self._is_measured or math.isinf(self.limit):
            return
        batches = loop.batches

        def timed(epoch: int, skip: int) -> Iterator[Any]:
            second = 0.0
            with closing(batches(epoch, skip)) as source:  # type: ignore[type-var]
                for number, batch in enumerate(source):
                    if number == 1:  # the first update is compiled
                        second = time.monotonic()
                    elif number == min(4, loop.batches_per_epoch - 1) and not self._is_measured:
                        now = time.monotonic()
                        seconds = (now - second) / (number - 1) * loop.batches_per_epoch
                        self._consider(seconds, self.limit - now)
                        loop.stage = self.shortened(loop.stage)
                    yield batch

        loop.batches = timed

    def _consider(self, seconds: float, left: float) -> None:
        self._is_measured = True
        epochs = int(min(left / (self.cost * max(seconds, 1e-9)), self.epochs))
        self.share = epochs / self.epochs
        if epochs < 1:
            raise TooSlowError(f"trainer.time_limit: an epoch would take {seconds / 60:.1f} minutes")
