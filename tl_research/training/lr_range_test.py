"""The learning-rate range test (Smith 2017, arXiv 1506.01186): train a stage while the rate rises with every update,
from negligible to divergence, and suggest a rate from the curve of the loss. The training leaves no run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.system.progress import bar
from tl_research.training.loop import EpochRow, TrainLoop

if TYPE_CHECKING:
    from tl_research.data.loader import Batch
    from tl_research.runs.checkpoint import CheckpointState

FIRST, LAST = 1e-7, 10.0
"""The first and the last rate. The last is seldom reached, for the test stops when the loss has risen."""
CALM = 10.0
"""Below this multiple of `FIRST` the weights hardly change: the loss varies by the noise of batches alone."""
LEAST_STEPS = 20
SHARE_AVERAGED = 0.1
"""The share of the updates that the average is over: a decay of 0.98 for 500 of them (fastai's), 0.9 for 100."""
RISEN = 4.0
"""The test ends at this multiple of the loss at the beginning."""
SMALL = 0.1
"""Losses below this share of chance's count as equal: at a head's optimum each hard image makes a peak."""

LEARNED = 0.01
"""Below this share of chance's loss the images are learned, and a rate can only do harm."""


@dataclass
class Curve:
    """The losses of a test, update by update, and their average; `chance` is the loss of guessing."""

    steps: int = 100
    chance: float = math.log(2)
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean losses over each update's examples, before the update."""
    smoothed: list[float] = field(default_factory=list)
    risen: bool = False
    """Whether the test may end: the average has multiplied and is worse than chance, or a loss is not finite."""

    def __post_init__(self) -> None:
        self.planned = np.geomspace(FIRST, LAST, self.steps).tolist()
        self.calm = max(sum(rate < CALM * FIRST for rate in self.planned), 5)
        self.beta = 1 - 1 / (SHARE_AVERAGED * self.steps)

    def add(self, loss: float) -> None:
        """Add the next update's loss; one that is not finite only ends the test. The average is exponential with bias
        correction (Kingma & Ba 2015, arXiv 1412.6980, section 3)."""
        if not math.isfinite(loss):
            self.risen = True
            return
        before = self.smoothed[-1] if self.smoothed else 0.0
        self.rates.append(self.planned[len(self.losses)])
        self.losses.append(loss)
        self.smoothed.append(before + (loss - before) * (1 - self.beta) / (1 - self.beta ** len(self.losses)))
        limit = max(RISEN * self.begin, self.chance)
        self.risen = len(self.losses) > self.calm and self.smoothed[-1] > limit

    @property
    def begin(self) -> float:
        """Average the loss over the rates that change nothing."""
        return float(np.mean(self.losses[: self.calm]))


def suggest(curve: Curve) -> tuple[float, str]:
    """Suggest a rate for the stage, and give the reason.

    If the loss falls, it is the rate halfway down, where a smooth curve is steepest (the slope of one step is mostly
    noise), corrected for the lag of the average; at most a tenth of the rate at the minimum, beyond which training is
    unstable (Smith 2017). If it does not fall, it is a tenth of the rate at which it rises, and a thirtieth if the loss
    is small, as of a head at its optimum: there a tenth made EfficientNet-Lite0 forget. The curve after the rise is
    ignored: a ruined network may return to chance.

    If the loss is nearly 0 before the first update, the reason says that nothing is left to learn.

    The loss has fallen, or risen, if the average differs from that at rates that change nothing by more than the
    deviation of a single batch there, and by more than a tenth.

    Raises:
        InputError: the loss is not finite at rates that should change nothing.
    """
    rates, smoothed, calm = np.array(curve.rates), np.array(curve.smoothed), curve.calm
    if len(rates) <= calm:
        raise InputError(
            f"lr_find: the loss is no number at a rate of {curve.planned[len(rates)]:.2g} already; "
            f"add trainer.clip_norm=1, or trainer.precision=float32"
        )
    begin = curve.begin
    margin = max(float(np.std(curve.losses[:calm], ddof=1)), 0.1 * max(begin, SMALL * curve.chance))
    risen = calm + _first(smoothed[calm:] > max(begin + margin, SMALL * curve.chance))
    lowest = calm + int(smoothed[calm : risen + 1].argmin())
    if begin - smoothed[lowest] > margin:
        lag = round(curve.beta / (1 - curve.beta))
        half = rates[max(lowest - 1 - _first(smoothed[:lowest][::-1] > (begin + smoothed[lowest]) / 2) - lag, 0)]
        rate, why = min(half, rates[lowest] / 10), f"fell from {begin:.3g} to {smoothed[lowest]:.3g}, "
        why += f"was half of the way down at {half:.2g}, and lowest at {rates[lowest]:.2g}"
    elif risen < len(rates) or curve.risen:
        rise, share = rates[min(risen, len(rates) - 1)], 30 if begin < SMALL * curve.chance else 10
        rate, why = rise / share, f"hardly fell from {begin:.3g}, and rose at {rise:.2g}, of which this is 1/{share}"
    else:
        rate, why = rates[-1] / 10, f"stayed at {begin:.3g} at all rates: a tenth of the largest, which says little"
    if begin < LEARNED * curve.chance:
        why += f"; at {begin:.3g} there is nothing left to learn on these images, and this rate only does no harm"
    return float(f"{rate:.2g}"), f"the loss {why}"


def _first(holds: np.ndarray) -> int:
    """Find the first index where something holds, or the end."""
    return int(holds.argmax()) if holds.any() else len(holds)


@dataclass
class RangeTest(TrainLoop):
    """Train a stage at rising rates, over the batches of as many epochs as it takes."""

    curve: Curve = field(default_factory=Curve)

    @override
    def run(self, state: CheckpointState | None = None) -> list[EpochRow]:
        self.curve.chance = math.log(self.model.output_shape[-1])
        with closing(self._groups()) as groups, bar() as progress:
            task = progress.add_task(f"stage {self.name}", total=self.curve.steps)
            for rate, group in zip(self.curve.planned, groups, strict=False):
                total, _ = self.step(group, rate)
                self.curve.add(float(total) / sum(len(inputs) for inputs, _ in group))
                if self.curve.risen:
                    break
                text = f"stage {self.name}  rate {rate:.1e}  loss {self.curve.smoothed[-1]:.3f}"
                progress.update(task, advance=1, description=text)
        return []

    def _groups(self) -> Generator[list[Batch], None, None]:
        """Yield the batches of each update, without end."""
        for epoch in itertools.count(self.first_epoch):
            with closing(self.batches(epoch, 0)) as batches:  # type: ignore[type-var]
                while group := list(itertools.islice(batches, self.accumulate)):
                    yield group
