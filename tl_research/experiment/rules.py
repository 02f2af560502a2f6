"""Rules for combining the parts of an experiment. Each raises one line that names the keys and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.models.combined import Auto
from tl_research.models.head import KNN, AutoHead, DirectHead, Head, Linear
from tl_research.training.callbacks import BestWeights
from tl_research.training.closed_form import needs_no_epochs
from tl_research.training.optimizer import LBFGS
from tl_research.training.stage import Stage

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment


SOLVED = Linear, AutoHead


def check_rules(experiment: Experiment) -> None:
    """Check all rules in order, and raise `ValueError` for the first that is broken."""
    _transfer_has_stages(experiment)
    if not experiment.stages:
        raise InputError("transfer: give at least one stage")
    for name, stage in experiment.stages.items():
        for rule in STAGE_RULES:
            rule(experiment, name, stage)
    for check in RULES:
        check(experiment)


def test_images_choose_nothing(monitor: Any) -> Any:
    """Refuse a metric of the test images as the monitor, with `ValueError`; all else is returned."""
    if str(monitor).startswith("test_"):
        raise ValueError(f"test images choose nothing; give monitor=val_{str(monitor)[5:]}")
    return monitor


def _transfer_has_stages(experiment: Experiment) -> None:
    allowed = {"choose_by": ("validation", "folds"), "interpolate": (False, True), "ensemble": (False, True)}
    for name, value in experiment.transfer.items():
        if name in allowed and value not in allowed[name]:
            choices = " or ".join(map(str, allowed[name])).lower()
            raise InputError(f"transfer.{name}={value}: should be {choices}")
        if name not in allowed and not isinstance(value, Stage):
            raise InputError(f"transfer.{name}={'null' if value is None else value}: should be a stage")


def _lbfgs_solves_linear_heads(experiment: Experiment, name: str, stage: Stage) -> None:
    head = experiment.head
    solvable = isinstance(head, DirectHead) or (isinstance(head, Linear) and head.dropout == 0)
    if isinstance(stage.optimizer_for(experiment.optimizer), LBFGS) and not solvable:
        raise ValueError(
            f"optimizer=lbfgs solves linear heads without dropout, and transfer.{name} would train another; "
            f"add optimizer=adam, or use head=linear head.dropout=0"
        )


def _lbfgs_trains_no_backbone(experiment: Experiment, name: str, stage: Stage) -> None:
    if isinstance(stage.optimizer, LBFGS) and stage.trains_backbone:
        raise ValueError(f"transfer.{name}.optimizer: lbfgs solves heads, and this stage trains the backbone; use adam")


def _knn_does_not_learn(experiment: Experiment, name: str, stage: Stage) -> None:
    if isinstance(experiment.head, KNN) and stage.trains_backbone:
        raise ValueError(f"head=knn does not learn, and transfer.{name} would train through it; add transfer=frozen")


def _augmented_images_are_seen(experiment: Experiment, name: str, stage: Stage) -> None:
    augment = experiment.data.augment
    seen = any(stage.trains_backbone for stage in experiment.stages.values())
    no_epochs = needs_no_epochs(stage, experiment.head, stage.optimizer_for(experiment.optimizer))
    if no_epochs and not seen and not augment.changes_nothing and experiment.features.views is None:
        views = "" if augment.mixes else "features.views=4 (versions of each image), or "
        raise ValueError(
            f"data.augment makes images that transfer.{name} would never see, for its head is solved on "
            f"features; add {views}optimizer=adam head=linear"
        )


def _direct_head_has_features(experiment: Experiment) -> None:
    if isinstance(experiment.head, DirectHead) and next(iter(experiment.stages.values())).trains_backbone:
        raise ValueError("the head is made from features, and the first stage of transfer has none; add head=linear")


def _direct_head_has_no_loss(experiment: Experiment) -> None:
    trainer, stages = experiment.trainer, experiment.stages.values()
    is_direct = isinstance(experiment.head, DirectHead) and not isinstance(experiment.head, AutoHead)
    if is_direct and not any(stage.trains_backbone for stage in stages):
        for key in ("class_weights", "logit_adjustment"):
            if getattr(trainer, key):
                raise ValueError(f"trainer.{key} counts in a loss, and this head is made without one; add head=linear")


def _automatic_batch_size(experiment: Experiment) -> None:
    if experiment.trainer.batch_size != "auto":
        return
    if experiment.deterministic:
        raise ValueError(
            "trainer.batch_size=auto depends on a GPU's memory, and deterministic=true may not; give a number"
        )
    if experiment.trainer.distribution == "multi_worker":
        raise ValueError(
            "trainer.batch_size=auto asks one machine what fits; trainer.distribution=multi_worker wants a number"
        )


def _mixing_has_images(experiment: Experiment) -> None:
    if not experiment.data.augment.mixes:
        return
    if experiment.features.views:
        raise ValueError(
            "features.views are of single images, and data.augment.mixup or cutmix would mix none of them; "
            "give features.views=null (a new version in each epoch), or data.augment.mixup=0 data.augment.cutmix=0"
        )
    if experiment.trainer.batch_size == 1:
        raise ValueError(
            "trainer.batch_size=1 leaves data.augment.mixup or cutmix nothing to mix an image with; "
            "give a larger one, or data.augment.mixup=0 data.augment.cutmix=0"
        )


def _views_differ(experiment: Experiment) -> None:
    for key in ("views", "test_views"):
        if getattr(experiment.features, key) and not experiment.data.augment.changes_images:
            raise ValueError(f"features.{key}: all views would be equal; add data/augment=light, or null")


def _best_epoch_has_one_monitor(experiment: Experiment) -> None:
    best = {key: each.monitor for key, each in experiment.callbacks.items() if isinstance(each, BestWeights)}
    if len(set(best.values())) > 1:
        given = " and ".join(f"callbacks.{key}.monitor={monitor}" for key, monitor in best.items())
        raise ValueError(f"{given}: a run ends on one best epoch, by one monitor; give the others null")


def _something_is_validated(experiment: Experiment) -> None:
    data, monitor = experiment.data, experiment.monitor
    unvalidated = data.val == 0 and data.folds is None
    if not unvalidated and monitor != "cv_accuracy":
        return
    key = "data.val=0" if unvalidated else f"monitor={monitor}"
    (stage, *more) = experiment.stages.values()
    optimizer = stage.optimizer_for(experiment.optimizer)
    if more or stage.trains_backbone or not (isinstance(optimizer, LBFGS) and isinstance(experiment.head, SOLVED)):
        raise ValueError(
            f"{key} leaves cv_accuracy alone to compare by, which only a solved head has; add transfer=frozen "
            f"optimizer=lbfgs head=linear, or hold out validation images, such as data.val=0.2"
        )
    if optimizer.l2 is not None:
        raise ValueError(f"{key} leaves cv_accuracy alone to compare by, and optimizer.l2 needs none; give l2=null")
    if unvalidated and monitor not in ("val_accuracy", "cv_accuracy"):
        raise ValueError(f"data.val=0 leaves nothing to measure {monitor} on; give monitor=cv_accuracy")


def _tuning_starts_from_a_head(experiment: Experiment) -> None:
    by_folds, (first, *others) = experiment.transfer.get("choose_by") == "folds", experiment.stages.values()
    if not (by_folds or experiment.transfer.get("interpolate")):
        return
    key = "transfer.choose_by=folds" if by_folds else "transfer.interpolate=true"
    if first.trains_backbone or not others or not all(stage.trains_backbone for stage in others):
        raise ValueError(f"{key}: one stage of the head, then stages that train the backbone; add transfer=finetune")
    solved = isinstance(first.optimizer_for(experiment.optimizer), LBFGS) and isinstance(experiment.head, SOLVED)
    if by_folds and not solved:
        raise ValueError(f"{key} compares with a head that is solved; add optimizer=lbfgs head=linear")


def _ensemble_is_chosen_out_of_fold(experiment: Experiment) -> None:
    if not experiment.transfer.get("ensemble"):
        return
    if experiment.transfer.get("choose_by") != "folds":
        raise ValueError("transfer.ensemble=true compares answers out of fold; add transfer.choose_by=folds")
    if experiment.trainer.distribution != "none":
        raise ValueError("transfer.ensemble=true trains on one device; add trainer.distribution=none")


def _auto_can_choose(experiment: Experiment) -> None:
    if not isinstance(experiment.backbone, Auto):
        return
    if any(stage.random_weights for stage in experiment.stages.values()):
        raise ValueError(
            "backbone=auto chooses among pretrained weights, and transfer starts from random ones; name one"
        )
    if experiment.trainer.distribution == "multi_worker":
        raise ValueError("backbone=auto chooses on one machine; with trainer.distribution=multi_worker name a backbone")


def fitting_heads(experiment: Experiment) -> tuple[list[Head], str]:
    """List the heads that `head=auto` may choose in this experiment, and say why no others."""
    assert isinstance(experiment.head, AutoHead)
    heads, trainer = experiment.head.candidates, experiment.trainer
    linear: list[Head] = [head for head in heads if isinstance(head, Linear)]
    if trainer.class_weights or trainer.logit_adjustment:
        key = "class_weights" if trainer.class_weights else "logit_adjustment"
        return linear, f"trainer.{key} counts in a loss, and only a linear head has one"
    if experiment.transfer.get("ensemble"):  # the tuned classifier has a head of its own
        return heads, ""
    if experiment.transfer.get("choose_by") == "folds":
        return linear, "transfer.choose_by=folds starts from a linear head"
    if any(stage.trains_backbone for stage in experiment.stages.values()):
        return [
            head for head in heads if not isinstance(head, KNN)
        ], "transfer trains through the head, and knn does not learn"
    return heads, ""


def _head_can_be_chosen(experiment: Experiment) -> None:
    if not isinstance(experiment.head, AutoHead):
        return
    if experiment.trainer.distribution == "multi_worker":
        raise ValueError("head=auto chooses on one machine; with trainer.distribution=multi_worker name a head")
    if not isinstance(next(iter(experiment.stages.values())).optimizer_for(experiment.optimizer), LBFGS):
        raise ValueError("head=auto compares heads that need no epochs; add optimizer=lbfgs, or name a head")
    heads, why = fitting_heads(experiment)
    if not heads:
        raise ValueError(f"head.among=[{','.join(experiment.head.among)}]: {why}; add linear")


def _shard_is_a_part(experiment: Experiment) -> None:
    shard = experiment.shard
    if shard and not (re.fullmatch(r"\d+/\d+", shard) and experiment.part[0] < experiment.part[1]):
        raise InputError(f"shard={shard}: give a part and the number of parts, such as 0/4, 1/4, 2/4, 3/4")


STAGE_RULES: tuple[Callable[[Experiment, str, Stage], None], ...] = (
    _lbfgs_solves_linear_heads,
    _lbfgs_trains_no_backbone,
    _knn_does_not_learn,
    _augmented_images_are_seen,
)
RULES: tuple[Callable[[Experiment], None], ...] = (
    _direct_head_has_features,
    _direct_head_has_no_loss,
    _automatic_batch_size,
    _mixing_has_images,
    _views_differ,
    _best_epoch_has_one_monitor,
    _something_is_validated,
    _tuning_starts_from_a_head,
    _ensemble_is_chosen_out_of_fold,
    _shard_is_a_part,
    _auto_can_choose,
    _head_can_be_chosen,
)
