"""The learning-rate range test (Smith 2017, arXiv 1506.01186): train a stage while the rate rises with every update,
from negligible to divergence, and suggest a rate from the curve of the loss. The training leaves no run."""

from __future__ import annotations

import io
import itertools
import math
import shlex
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from tl_research.errors import InputError
from tl_research.models.head import DirectHead
from tl_research.runs.run import as_csv
from tl_research.system.files import write_atomically
from tl_research.system.progress import bar
from tl_research.training.callbacks import TensorBoard
from tl_research.training.loop import EpochRow, TrainLoop
from tl_research.training.optimizer import GradientOptimizer
from tl_research.training.summary import show_learning_rate

if TYPE_CHECKING:
    from tl_research.data.loader import Batch
    from tl_research.experiment.experiment import Experiment
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


def find(experiment: Experiment, stage: str | None = None, steps: int = 100) -> tuple[str, Curve]:
    """Tests a stage's learning rate, after the stages before it have been fitted as a run would: its name, and the
    curve. `stage` is by default the first that trains the backbone, else the first that follows gradients.

    Raises:
        InputError: there is no such stage or it has no learning rate, too few steps, or what a run raises.
    """
    name = _chosen(experiment, stage)
    if steps < LEAST_STEPS:
        raise InputError(f"--steps {steps}: too few to see a curve; give {LEAST_STEPS} or more")
    for key in ("resume", "shard"):
        if value := getattr(experiment, key):
            raise InputError(f"{key}={value}: lr_find takes the overrides of a whole run; leave it out")
    if experiment.trainer.distribution == "multi_worker":
        raise InputError("trainer.distribution=multi_worker: lr_find runs on one machine; leave it out")
    names = list(experiment.transfer)
    shortened = replace(
        experiment,
        transfer={name: experiment.transfer[name] for name in names[: names.index(name) + 1]},
        trainer=replace(experiment.trainer, time_limit=None),
        callbacks={k: v for k, v in experiment.callbacks.items() if not isinstance(v, TensorBoard)},  # nobody will look
    )
    curve = Curve(steps)
    shortened.rehearse({name: partial(RangeTest, curve=curve)})
    return name, curve


def _chosen(experiment: Experiment, stage: str | None) -> str:
    transfer = experiment.transfer
    if stage is not None and stage not in transfer:
        raise InputError(f"--stage {stage}: there is no such stage; those of transfer are {', '.join(transfer)}")
    able = [
        name
        for name, each in transfer.items()
        if isinstance(each.optimizer_for(experiment.optimizer), GradientOptimizer)
        and (each.trains_backbone or not isinstance(experiment.head, DirectHead))
    ]
    if stage in able:
        return stage
    if stage is None and able:
        return next((name for name in able if transfer[name].trains_backbone), able[0])
    which = f"--stage {stage}" if stage else f"transfer.{next(iter(transfer))}"
    instead = f"give --stage {able[0]}" if able else "transfer=finetune"
    raise InputError(f"{which}: its head is not found by gradients; add head=linear optimizer=adam, or {instead}")


def destination(output: Path | None) -> Path:
    """The folder to write into, which need not exist. Raises `InputError` if it could not be made."""
    folder = (output or Path(time.strftime("outputs/lr_find/%Y-%m-%d_%H-%M-%S"))).expanduser()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written ({there}: {error.strerror})") from None
    return folder


def report(experiment: Experiment, overrides: Sequence[str], stage: str, curve: Curve, folder: Path) -> None:
    """Writes `lr_find.png`, `lr_find.csv` and `override.txt`, the override alone; shows the command to use."""
    from PIL import Image

    from tl_research.reports import figures

    rate, why = suggest(curve)
    key = f"transfer.{stage}.learning_rate"
    known = "learning_rate" in experiment.config.get("transfer", {}).get(stage, {})
    line = f"{'' if known else '+'}{key}={rate:.2g}"
    kept = [override for override in overrides if override.partition("=")[0].lstrip("+") != key]
    header, columns = ["learning_rate", "loss", "smoothed"], (curve.rates, curve.losses, curve.smoothed)
    png = io.BytesIO()
    page = figures.learning_rates(f"learning-rate range test, stage {stage}", *columns, rate)
    Image.fromarray(page).save(png, "png")
    table = as_csv(header, zip(*columns, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("lr_find.png", png.getvalue()), ("lr_find.csv", table), ("override.txt", f"{line}\n")):
        write_atomically(folder / name, content)
    show_learning_rate(stage, rate, why, shlex.join(["python", "train.py", *kept, line]), folder)
