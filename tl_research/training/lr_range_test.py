"""The learning-rate range test (Smith 2017, arXiv 1506.01186): a stage is trained at a rate that rises with every
update, from one that changes nothing to one that ruins everything; its loss tells which are good. Of all that nothing
stays but a curve, a rate, and features in the store."""

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
"""Where rates begin and end. The end is seldom seen, for the test stops when the loss has risen."""
CALM = 10.0
"""Up to so many times the first rate nothing moves: what the loss does there is the noise of batches."""
LEAST_STEPS = 20
SHARE_AVERAGED = 0.1
"""The share of the updates that an average is over: 0.98 for 500 of them (fastai's), 0.9 for 100."""
RISEN = 4.0
"""How many times the loss at the beginning ends the test."""
SMALL = 0.1
"""The share of chance's loss below which all are alike: a head at its optimum has a peak at each hard image."""


@dataclass
class Curve:
    """The losses of a test, update by update, and their average; `chance` is the loss of knowing nothing."""

    steps: int = 100
    chance: float = math.log(2)
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Means of an update's examples, before it."""
    smoothed: list[float] = field(default_factory=list)
    risen: bool = False
    """Whether the test has seen enough: the average is several times what it was and worse than chance, or a loss is no
    number."""

    def __post_init__(self) -> None:
        self.planned = np.geomspace(FIRST, LAST, self.steps).tolist()
        self.calm = max(sum(rate < CALM * FIRST for rate in self.planned), 5)
        self.beta = 1 - 1 / (SHARE_AVERAGED * self.steps)

    def add(self, loss: float) -> None:
        """Takes notice of the next update's loss; one that is no number only ends the test. The average is exponential,
        corrected for having begun at 0 (Kingma & Ba 2015, arXiv 1412.6980, section 3)."""
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
        """The loss at rates that change nothing."""
        return float(np.mean(self.losses[: self.calm]))


def suggest(curve: Curve) -> tuple[float, str]:
    """A rate for the stage, and why it is this one.

    Where the loss falls, it is the rate at which it has come half of the way down, where a smooth curve is steepest
    (one step's slope is mostly noise), looked up as much earlier as the average lags behind; and at most a tenth of the
    rate at the minimum, beyond which training is unstable (Smith 2017). Where it does not fall, it is a tenth
    of the rate at which it rises, and a thirtieth where much can be lost, as by a head at its optimum: there a tenth
    made EfficientNet-Lite0 forget. What comes after the rise, such as a ruined network's return to chance, tells
    nothing.

    It has fallen, or risen, when the average leaves what it was at rates that change nothing by more than the deviation
    of a single batch there, and by more than a tenth.

    Raises:
        InputError: the loss is no number at rates that should change nothing.
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
    return float(f"{rate:.2g}"), f"the loss {why}"


def _first(holds: np.ndarray) -> int:
    """The first place where something holds, or the end."""
    return int(holds.argmax()) if holds.any() else len(holds)


@dataclass
class RangeTest(TrainLoop):
    """A stage fitted at rising rates, in place of its epochs: the batches of one epoch after the other."""

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
                told = f"stage {self.name}  rate {rate:.1e}  loss {self.curve.smoothed[-1]:.3f}"
                progress.update(task, advance=1, description=told)
        return []

    def _groups(self) -> Generator[list[Batch], None, None]:
        """The batches of each update, without end."""
        for epoch in itertools.count(self.first_epoch):
            with closing(self.batches(epoch, 0)) as batches:  # type: ignore[type-var]
                while group := list(itertools.islice(batches, self.accumulate)):
                    yield group
