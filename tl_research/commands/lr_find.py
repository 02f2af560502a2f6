"""`lr_find`: a learning rate for one stage, by a range test."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_research.commands.arguments import output_folder
from tl_research.errors import InputError

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment
    from tl_research.training.lr_range_test import Curve


def lr_find_command(
    context: typer.Context,
    stage: Annotated[
        str | None, typer.Option(help="Stage to test; default: the first that trains the backbone")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of updates, at least 20; rates go from 1e-7 to 10")] = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; default: outputs/lr_find/...")
    ] = None,
) -> None:
    """Find a learning rate for one stage by a range test. No run is changed.

    Example: python -m tl_research lr_find transfer=finetune
    """
    from tl_research import compose

    if several := {"-m", "--multirun"} & set(context.args):
        raise InputError(f"{several.pop()}: lr_find tests one configuration; leave it out, and give single values")
    experiment = compose(context.args)
    folder = output_folder(output, "lr_find")
    write_suggestion(experiment, context.args, *find_learning_rate(experiment, stage, steps), folder)


def find_learning_rate(experiment: Experiment, stage: str | None = None, steps: int = 100) -> tuple[str, Curve]:
    """Test the learning rate of a stage, after fitting the stages before it as a run would.

    Args:
        experiment: as of a whole run.
        stage: by default the first that trains the backbone, else the first that follows gradients.
        steps: the number of updates.

    Returns:
        The stage's name, and the curve.

    Raises:
        InputError: there is no such stage or it has no learning rate, too few steps, or what a run raises.
    """
    from tl_research.reports.mlflow_tracker import MLflow
    from tl_research.reports.tensorboard import TensorBoard
    from tl_research.training.lr_range_test import LEAST_STEPS, Curve, RangeTest

    name = _choose_stage(experiment, stage)
    if steps < LEAST_STEPS:
        raise InputError(f"--steps {steps}: too few to see a curve; give {LEAST_STEPS} or more")
    for key in ("resume", "shard"):
        if value := getattr(experiment, key):
            raise InputError(f"{key}={value}: lr_find takes the overrides of a whole run; leave it out")
    if experiment.trainer.distribution == "multi_worker":
        raise InputError("trainer.distribution=multi_worker: lr_find runs on one machine; leave it out")
    names = list(experiment.stages)
    shortened = replace(
        experiment,
        transfer={name: experiment.stages[name] for name in names[: names.index(name) + 1]},
        trainer=replace(experiment.trainer, time_limit=None),
        callbacks={k: v for k, v in experiment.callbacks.items() if not isinstance(v, TensorBoard | MLflow)},
    )
    curve = Curve(steps)
    shortened.rehearse({name: partial(RangeTest, curve=curve)})
    return name, curve


def _choose_stage(experiment: Experiment, stage: str | None) -> str:
    """Choose the stage to test.

    Raises:
        InputError: there is no such stage, or it does not follow gradients.
    """
    from tl_research.models.head import DirectHead
    from tl_research.training.optimizer import GradientOptimizer

    transfer = experiment.stages
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


def write_suggestion(experiment: Experiment, overrides: Sequence[str], stage: str, curve: Curve, folder: Path) -> None:
    """Write `lr_find.png`, `lr_find.csv` and `override.txt`, the override alone; show the command to use."""
    from PIL import Image

    from tl_research.reports import figures
    from tl_research.runs.run import as_csv
    from tl_research.system.files import write_atomically
    from tl_research.training.lr_range_test import suggest
    from tl_research.training.summary import show_learning_rate

    rate, why = suggest(curve)
    key = f"transfer.{stage}.learning_rate"
    known = "learning_rate" in experiment.config.get("transfer", {}).get(stage, {})
    line = f"{'' if known else '+'}{key}={rate:.2g}"
    others = [override for override in overrides if override.partition("=")[0].lstrip("+") != key]
    header, columns = ["learning_rate", "loss", "smoothed"], (curve.rates, curve.losses, curve.smoothed)
    png = io.BytesIO()
    page = figures.learning_rates(f"learning-rate range test, stage {stage}", *columns, rate)
    Image.fromarray(page).save(png, "png")
    table = as_csv(header, zip(*columns, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("lr_find.png", png.getvalue()), ("lr_find.csv", table), ("override.txt", f"{line}\n")):
        write_atomically(folder / name, content)
    show_learning_rate(stage, rate, why, shlex.join(["python", "train.py", *others, line]), folder)
