"""Choose the head of a run by cross-validation on its training and validation images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from tl_research.experiment.candidates import Candidate, judge, thinned_images
from tl_research.experiment.rules import fitting_heads
from tl_research.experiment.summary import show_choice
from tl_research.models.head import AutoHead, DirectHead, Head
from tl_research.runs.reader import read_selection
from tl_research.runs.run import Run
from tl_research.training.closed_form import cross_validate, fit_scaled
from tl_research.training.head_coordinates import part_scales, span
from tl_research.training.logistic_regression import STRENGTHS, OutOfFold, choose_l2, image_rows
from tl_research.training.optimizer import LBFGS
from tl_research.training.stage_runner import StageRunner

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

log = logging.getLogger(__name__)

SPLITS = "train", "val"
MOST_IMAGES = 1000
"""Images at most that choose: each whitening costs the cube of their number."""


def choose_head(experiment: Experiment, run: Run, runner: StageRunner) -> Experiment:
    """Give the runner the head that is best for the images in place of `head=auto`; return the experiment with a
    configuration that says so. Any other experiment stays as it is. The choice is recorded as that of the backbone.

    A run that continues from a checkpoint keeps its choice. No head is begun after the runner's deadline but the first.
    """
    import keras

    if not isinstance(experiment.head, AutoHead):
        return experiment
    fitting, reason = fitting_heads(experiment)
    heads = {_name(head): head for head in fitting}
    selection = read_selection(run.directory)
    earlier = selection.get("head", {}).get("chosen") if run.resumes else None
    with run.phase("selection"):
        candidates = list(_look(experiment, runner, {earlier: heads[earlier]} if earlier else heads))
    chosen = candidates[0]
    if not earlier:
        chosen, rows, why = judge(candidates, _groups(experiment, runner))
        why = f"{why}; {reason}" if reason else why
        show_choice(rows, why, "head")
        said = {"chosen": chosen.name, "why": why, "candidates": [asdict(row) for row in rows]}
        run.write_json("selection.json", selection | {"head": said})
    head = heads[chosen.name]
    run.metrics |= {"head": "auto", "chosen_head": chosen.name}
    if isinstance(head, DirectHead) and chosen.validated.log_losses:
        run.metrics |= {"cv_accuracy": chosen.validated.accuracy, "cv_loss": chosen.loss}
        runner.state.judged = _images(experiment, runner)[chosen.validated.image_losses[0]]
        runner.state.out_of_fold = _of_all_classes(chosen.validated.out_of_fold, len(runner.state.data.class_names))
    described = {"_target_": f"tl_research.targets.{type(head).__name__}"} | asdict(head)
    config = experiment.config | {"head": experiment.config["head"] | {"chosen": described}}
    run.write_config(config)
    runner.head_recipe = head
    if not isinstance(head, DirectHead):
        keras.utils.set_random_seed(runner.seed)
        runner.state.replace_head(
            head.build(runner.state.backbone.output_shape[-1], len(runner.state.data.class_names))
        )
    return replace(experiment, config=config)


def _of_all_classes(answers: OutOfFold | None, num_classes: int) -> OutOfFold | None:
    """Return answers with a logit for each class; none where the images that choose lack a rare one."""
    return answers if answers and answers[0].shape[1] == num_classes else None


def _name(head: Head) -> str:
    return type(head).__name__.lower() + (", whitened" if getattr(head, "whiten", False) else "")


def _look(experiment: Experiment, runner: StageRunner, heads: Mapping[str, Head]) -> Iterator[Candidate]:
    """Yield the heads with their cross-validation, in the same folds, for as long as there is time."""
    from threadpoolctl import threadpool_limits

    inputs, options = runner.state.inputs, next(iter(experiment.stages.values())).optimizer_for(experiment.optimizer)
    assert isinstance(options, LBFGS)
    inputs.ensure(validation=True)
    views, widths, groups = inputs.views, inputs.features.source.widths, _groups(experiment, runner)
    rows = image_rows(_images(experiment, runner), views)
    features, labels = (values[rows] for values in inputs.learned(*SPLITS))
    for number, (name, head) in enumerate(heads.items()):
        began = time.perf_counter()
        if number and time.monotonic() > runner.deadline:
            log.warning("trainer.time_limit: head %s and what follows were not looked at", name)
            return
        with threadpool_limits(1, "blas"):
            if isinstance(head, DirectHead):
                validated = cross_validate(head, features, labels, options, runner.seed, views, groups, widths)
                classes, place = np.unique(labels, return_inverse=True)  # a rare one may not be there
                size = fit_scaled(head, features, place, len(classes), views, widths).count_params()
            else:
                coordinates = span((features - features.mean(axis=0)) / part_scales(features, widths))[0]
                balance = experiment.trainer.balance(inputs.data, *SPLITS)
                strengths = [options.l2] if options.l2 else STRENGTHS
                validated = choose_l2(coordinates, labels, options, runner.seed, views, groups, balance, strengths)
                size = (features.shape[1] + 1) * len(inputs.data.class_names)
        yield Candidate(name, validated, time.perf_counter() - began, size, size, order=number)


def _images(experiment: Experiment, runner: StageRunner) -> np.ndarray:
    data = runner.state.data
    return thinned_images(data.labels[data.indices(*SPLITS)], MOST_IMAGES, experiment.seed)


def _groups(experiment: Experiment, runner: StageRunner) -> np.ndarray | None:
    data = runner.state.data
    return data.kept_together(data.indices(*SPLITS)[_images(experiment, runner)])
