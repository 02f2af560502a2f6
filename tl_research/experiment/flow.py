"""The flow of a run, from images to a run directory."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tl_research.backend.start import start_backend
from tl_research.backend.strategy import Strategy, open_strategy
from tl_research.data.summary import describe_data, show_data
from tl_research.errors import InputError
from tl_research.evaluation.evaluate import evaluate_run, show_results
from tl_research.experiment.full_check import check_run, without_leaks
from tl_research.experiment.head_selection import choose_head
from tl_research.experiment.outcome import closing_callbacks, record_outcome
from tl_research.experiment.run_transfer import run_stages, run_transfer
from tl_research.experiment.scaling import compare_scaling
from tl_research.experiment.selection import choose_backbone
from tl_research.experiment.summary import show_done_before, show_metrics, show_small_classes, warn_of_the_majority
from tl_research.features.extraction import ORIGINAL
from tl_research.features.summary import show_features
from tl_research.features.table import FeatureTable
from tl_research.models.backbone import Saved
from tl_research.models.combined import Auto, Combined
from tl_research.models.head import AutoHead, DirectHead, Linear
from tl_research.models.preprocessing import scales_pixels
from tl_research.models.summary import show_model
from tl_research.models.weights.licences import describe_weights
from tl_research.reports.card import CARD, write_card
from tl_research.runs.identity import compare, identity
from tl_research.runs.reader import answering_backbone
from tl_research.runs.run import Existing, Run
from tl_research.system.console import only_warning, silenced
from tl_research.system.process import where_started
from tl_research.system.versions import versions
from tl_research.training.callbacks import Callback
from tl_research.training.classifier_state import ClassifierState
from tl_research.training.closed_form import needs_no_epochs
from tl_research.training.fold_tuning import tuning_folds
from tl_research.training.logistic_regression import Choice
from tl_research.training.options import TrainOptions
from tl_research.training.pruning import current_trial
from tl_research.training.stage_runner import StageRunner
from tl_research.training.trained_weights import BestEpoch

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule
    from tl_research.data.file_index import FileIndex
    from tl_research.experiment.experiment import Experiment
    from tl_research.training.loop import TrainLoop

log = logging.getLogger(__name__)


def run_experiment(experiment: Experiment, directory: str | Path | None, existing: Existing) -> Run:
    """Do `Experiment.run`."""
    if experiment.shard:
        raise InputError(f"shard={experiment.shard} is for `python -m tl_research extract`; training needs all images")
    with _claimed(experiment, directory, "continue" if experiment.resume else existing) as run:
        data = _load(experiment, run, experiment.data.load)
        if _is_done(experiment, run, data):
            show_done_before(run.metrics, run.directory)
        else:
            _train_and_evaluate(experiment, run, data)
    return run


def extract_features(experiment: Experiment, directory: str | Path | None, existing: Existing) -> Run:
    """Do `Experiment.extract`."""
    if experiment.features.store is None:
        raise InputError("features.store=null: there is nowhere to put features; give a folder")
    # An earlier extraction is repeated: stored rows are found, and those pruned since are computed.
    with _claimed(experiment, directory, "replace" if existing == "resume" else existing) as run:
        data = _load(experiment, run, lambda index: experiment.data.load_part(experiment.part, index))
        threads = _begin(experiment, run, data)
        with run.phase("build"):
            table = experiment.feature_table(experiment.start.build(), data, threads)
        with run.phase("features"):
            table.ensure_stored(np.arange(len(data)), (ORIGINAL, *range(experiment.features.views or 0)))
        show_features(table.computed, table.hit)
        run.metrics |= _feature_counts(table)
        run.write_json("metrics.json", run.metrics | versions())
    return run


def rehearse(experiment: Experiment, loops: Mapping[str, Callable[..., TrainLoop]]) -> None:
    """Do `Experiment.rehearse`."""
    with tempfile.TemporaryDirectory() as folder, _claimed(experiment, folder, "replace") as run:
        data = _load(experiment, run, experiment.data.load)
        experiment, choice, threads = _begin_and_choose(experiment, run, data)
        with _stage_runner(experiment, run, data, choice, threads) as runner:
            runner.loops = loops
            experiment = choose_head(experiment, run, runner)
            run_stages(experiment, run, runner)


@contextmanager
def _claimed(experiment: Experiment, directory: str | Path | None, existing: Existing) -> Iterator[Run]:
    """Claim the run directory and check for images and weights; at the end record the outcome."""
    chosen = directory or where_started(experiment.directory or time.strftime("outputs/%Y-%m-%d/%H-%M-%S"))
    run = Run.claim(Path(chosen).expanduser().absolute(), "replace" if experiment.fresh else existing)
    began = time.time()
    with (
        silenced(not experiment.verbose),
        closing(run),
        closing_callbacks(experiment.callbacks.values(), run),
        record_outcome(run),
    ):
        if not (run.kept or run.untouched):
            run.write_config(experiment.config)
        experiment.preflight()
        yield run
        experiment.features.prune(since=began)


def _load(experiment: Experiment, run: Run, load: Callable[[FileIndex], DataModule]) -> DataModule:
    with run.phase("data"):
        return load(experiment.features.file_index())


def _is_done(experiment: Experiment, run: Run, data: DataModule) -> bool:
    """Give the run its identity; return whether this very job has been done in its directory before."""
    job = identity(experiment.config, data, experiment.start.files())
    if not (run.kept or run.resumes):
        return run.adopt_or_restart(job.as_dict())
    comparison = compare(run, job, experiment.config, data)
    is_done = run.adopt_or_restart(replace(job, opaque=comparison.opaque).as_dict(), comparison.changed)
    for warning in comparison.warnings:
        log.warning("%s: %s", run.directory, warning)
    return is_done


def _begin(experiment: Experiment, run: Run, data: DataModule) -> int:
    """Start the backend, record seed, classes and unreadable images; return the number of threads."""
    experiment.trainer.balance(data, "train")  # names classes that there are not, before anything is computed
    run.write_config(experiment.config)  # only now: an earlier run's stays until it is to be replaced
    with run.phase("start"):
        threads = start_backend(experiment.threads, experiment.deterministic)
    run.metrics |= {"seed": experiment.seed, "threads": threads, "deterministic": experiment.deterministic}
    run.metrics |= {"random_weights": experiment.falls_back, "resumed_at_epoch": None}
    show_data(data)
    show_small_classes(data)
    run.write_json("classes.json", list(data.class_names))
    if data.found.paths:  # not where a part of the images is extracted
        run.write_json("data_check.json", describe_data(data))
    if data.values:
        run.write_json("pixel_range.json", asdict(data.pixel_range))
    if data.quarantined:
        run.write_csv("set_aside.csv", ["path", "reason"], [[bad.path, bad.reason] for bad in data.quarantined])
    return threads


def _begin_and_choose(
    experiment: Experiment, run: Run, data: DataModule, deadline: float = math.inf
) -> tuple[Experiment, Choice | None, int]:
    """Begin, and choose the backbone where that is left to the run; return the experiment, what `choose_backbone` says
    of its head, and the number of threads."""
    threads = _begin(experiment, run, data)
    return *choose_backbone(experiment, run, data, threads, deadline), threads


def _train_and_evaluate(experiment: Experiment, run: Run, data: DataModule) -> None:
    _warn_of_idle_keys(experiment)
    if experiment.transfer.get("choose_by") == "folds":
        tuning_folds(data, experiment.seed)  # says which class is too small, before anything is computed
    began, seconds = time.monotonic(), 60 * (experiment.trainer.time_limit or math.inf)
    trains = any(stage.trains_backbone for stage in experiment.stages.values())  # which gets half of the time
    until = began + seconds / (2 if trains else 1)
    experiment, choice, threads = _begin_and_choose(experiment, run, data, until)
    with _stage_runner(experiment, run, data, choice, threads, began + seconds) as runner:
        experiment = choose_head(experiment, run, runner)
        if experiment.data.check == "full":
            with run.phase("check"):
                check_run(experiment, runner.state.features, run.directory / "check")
        run_transfer(experiment, run, runner, _tuner(experiment, run, data, threads, runner))
        state = runner.state
        run.metrics["num_parameters"] = state.classifier.count_params()
        with run.phase("evaluate"):
            metrics, logits = evaluate_run(run, state, experiment.features.test_views)
        run.metrics |= metrics | _feature_counts(state.features)
        run.metrics |= without_leaks(logits["test"], data, experiment.features.root)
        with run.phase("save"):
            run.write_model(state.classifier)
            run.write_json("weights.json", describe_weights(answering_backbone(experiment.config, run.metrics)))
        run.metrics |= versions()
        run.write_json("metrics.json", run.metrics)  # before anything is drawn: the result stands
        with only_warning(CARD):
            write_card(Run.open(run.directory))
        shown = experiment.report.thumbnails
        show_results(run, state, runner.callbacks.values(), experiment.config, logits["test"], pictures=shown)
        run.write_json("metrics.json", run.metrics)  # with the seconds that showing took
        run.checkpoints.remove()
        show_metrics(run.metrics, run.directory, len(runner.history), data, logits)
        if experiment.trainer.class_weights is None and not experiment.trainer.logit_adjustment:
            warn_of_the_majority(run.metrics)


@contextmanager
def _stage_runner(
    experiment: Experiment,
    run: Run,
    data: DataModule,
    choice: Choice | None,
    threads: int,
    deadline: float = math.inf,
) -> Iterator[StageRunner]:
    """Build the stage runner, on all devices."""
    job = json.dumps([run.status["identity"], run.resumes], sort_keys=True)
    with open_strategy(experiment.trainer.distribution, job) as strategy:
        state = _build(experiment, run, data, threads, strategy)
        run.metrics |= {f"num_{split}": len(data.indices(split)) for split in ("train", "val", "test")}
        run.metrics |= {"num_classes": len(data.class_names), "num_quarantined": len(data.quarantined)}
        run.metrics |= {"dataset": data.dataset} | ({"num_leaks": len(data.found.leaks)} if data.found.leaks else {})
        yield StageRunner(
            run=run,
            state=state,
            head_recipe=experiment.head,
            trainer=experiment.trainer,
            callbacks=_callbacks(experiment, data),
            batch_norm=experiment.bn,
            seed=experiment.seed,
            strategy=strategy,
            trial=current_trial(),
            deadline=deadline,
            shows_images=experiment.report.thumbnails,
            choice=choice,
        )


def _tuner(experiment: Experiment, run: Run, data: DataModule, threads: int, runner: StageRunner) -> StageRunner | None:
    """With `transfer.ensemble` build another classifier, to be tuned beside the frozen one: of several networks side by
    side that with the smallest weights, for all at once would take several times as long."""
    if not experiment.transfer.get("ensemble"):
        return None
    backbone = experiment.start
    if isinstance(backbone, Combined):
        backbone = min(backbone.built_parts, key=lambda part: sum(path.stat().st_size for path in part.files()))
        run.metrics["tuned_backbone"] = backbone.name
    state = _build(replace(experiment, backbone=backbone, head=Linear()), run, data, threads, None)
    return replace(runner, state=state, head_recipe=Linear(), history=[], best=BestEpoch(), choice=None)


def _callbacks(experiment: Experiment, data: DataModule) -> dict[str, Callback]:
    """Choose the callbacks, without those that monitor validation images where there are none."""
    given = {name: callback for name, callback in experiment.callbacks.items() if callback}
    if len(data.indices("val")):
        return given
    return {name: each for name, each in given.items() if not str(getattr(each, "monitor", "")).startswith("val_")}


def _build(
    experiment: Experiment, run: Run, data: DataModule, threads: int, strategy: Strategy | None
) -> ClassifierState:
    import keras

    with run.phase("build"):
        backbone = experiment.start.build(keep_session=strategy is not None)
        keras.utils.set_random_seed(experiment.seed)
        width, num_classes = backbone.output_shape[-1], len(data.class_names)
        is_direct = isinstance(experiment.head, DirectHead)
        head = None if is_direct else experiment.head.build(width, num_classes)
        features = experiment.feature_table(backbone, data, threads)
    if isinstance(experiment.start, Saved) and experiment.start.preprocessing is None and not scales_pixels(backbone):
        compare_scaling(experiment.start, features, experiment.seed)
        keras.utils.set_random_seed(experiment.seed)
    show_model(experiment.backbone.name, backbone, head)
    return ClassifierState(data, backbone, head, features, threads, run.phase)


def _feature_counts(table: FeatureTable) -> dict[str, int]:
    return {"features_computed": table.computed, "features_hit": table.hit}


COUNT_AT_ONCE = ("class_weights", "logit_adjustment")


def _warn_of_idle_keys(experiment: Experiment) -> None:
    """Warn of `trainer` keys without effect where no stage has epochs."""
    stages = experiment.stages.values()
    if all(needs_no_epochs(stage, experiment.head, stage.optimizer_for(experiment.optimizer)) for stage in stages):
        given = experiment.trainer
        chooses = isinstance(experiment.backbone, Auto) or isinstance(experiment.head, AutoHead)
        limit = given.time_limit if chooses else None
        default = TrainOptions(distribution=given.distribution, time_limit=limit)
        for key in (field.name for field in fields(default) if field.name not in COUNT_AT_ONCE):
            if getattr(given, key) != getattr(default, key):
                log.warning("trainer.%s changes nothing: the head is computed at once, and no stage has epochs", key)
