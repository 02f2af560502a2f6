"""Run the stages of `transfer` as it says, and end on the best of what they give."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tl_research.errors import DivergedError
from tl_research.models.head import Linear
from tl_research.runs.run import Run
from tl_research.training.fold_tuning import interpolate_by_validation, tune_by_folds
from tl_research.training.optimizer import LBFGS, GradientOptimizer
from tl_research.training.stage import Stage
from tl_research.training.stage_runner import StageRunner
from tl_research.training.tuned_ensemble import tune_beside

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

log = logging.getLogger(__name__)


def run_transfer(experiment: Experiment, run: Run, runner: StageRunner, tuner: StageRunner | None) -> None:
    """Run all stages and leave the classifier as `transfer.choose_by` and `interpolate` choose it, with `ensemble` by a
    `tuner` beside the runner."""
    interpolated = experiment.transfer.get("interpolate", False)
    if experiment.transfer.get("choose_by") == "folds":
        stages = [(name, stage, _optimizer(experiment, stage)) for name, stage in experiment.stages.items()]
        if tuner is None:
            run.metrics |= tune_by_folds(runner, stages, interpolated=interpolated)
        else:
            run.metrics |= tune_beside(runner, tuner, stages, interpolated=interpolated)
        return
    run_stages(experiment, run, runner)
    run.metrics |= runner.finish()
    run.metrics |= _refit_if_frozen_is_best(experiment, runner)
    if interpolated and runner.best.stage != next(iter(experiment.stages)):
        run.metrics |= interpolate_by_validation(runner, runner.state.frozen)


def run_stages(experiment: Experiment, run: Run, runner: StageRunner) -> None:
    """Run all stages, or the remaining ones after a checkpoint."""
    checkpoint = run.checkpoints.read() if run.resumes else None
    first = runner.restore(checkpoint) if checkpoint else 0
    if checkpoint:
        log.info("%s: continued after epoch %d", run.directory, run.metrics["resumed_at_epoch"])
    stages = list(experiment.stages.items())
    for number, (name, stage) in enumerate(stages[first:], first):
        if runner.is_late:
            break
        try:
            optimizer, last = _optimizer(experiment, stage), number == len(stages) - 1
            run.metrics |= runner.run_stage(number, name, stage, optimizer, last=last)
        except DivergedError:
            if runner.finish():
                run.write_model(runner.state.classifier)
            raise
        if not runner.state.backbone_changed:
            runner.state.frozen = runner.state.trained.now(runner.state.classifier)
        runner.save(number + 1)


def _optimizer(experiment: Experiment, stage: Stage) -> LBFGS | GradientOptimizer:
    optimizer = stage.optimizer_for(experiment.optimizer)
    assert isinstance(optimizer, LBFGS | GradientOptimizer)
    return optimizer


def _refit_if_frozen_is_best(experiment: Experiment, runner: StageRunner) -> dict[str, Any]:
    """If fine-tuning did not improve validation, refit the frozen head on train + val; return its metrics."""
    name, stage = next(iter(experiment.stages.items()))
    optimizer = stage.optimizer_for(experiment.optimizer)
    is_best = runner.best.stage == name and not stage.trains_backbone
    is_solved = isinstance(optimizer, LBFGS) and isinstance(runner.head_recipe, Linear)
    if is_best and is_solved and runner.state.held_out is None:
        assert isinstance(optimizer, LBFGS)
        return runner.solve_again(name, optimizer)
    return {}
