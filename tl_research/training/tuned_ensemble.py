"""Fine-tune beside the frozen answer, and end on whichever of both, or their mean, is better out of fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl_research.metrics.classification import accuracy_and_loss
from tl_research.metrics.paired import is_gain
from tl_research.metrics.probabilities import softmax
from tl_research.models.ensemble import build_ensemble
from tl_research.training.classifier_state import ClassifierState
from tl_research.training.fold_tuning import Stages, tune_by_folds
from tl_research.training.logistic_regression import OutOfFold
from tl_research.training.stage_runner import Metrics, StageRunner
from tl_research.training.summary import show_members


def tune_beside(runner: StageRunner, tuner: StageRunner, stages: Stages, *, interpolated: bool) -> Metrics:
    """Fit the runner's head on its frozen backbone, fine-tune the tuner's classifier by folds, and leave the better one
    or their mean as the runner's state; return the metrics, with `members`: which answer.

    A second network costs twice the time of an answer, so each must be better by more than a standard error of the
    paired difference of log losses: the tuned than the frozen, the mean (as in Caruana et al. 2004) than both.
    """
    metrics = runner.run_stage(0, *stages[0], last=True) | runner.finish()
    history, state, members = list(runner.history), runner.state, ["frozen"]
    groups = state.data.kept_together(state.data.indices("train", "val"))

    def worth(tuned: OutOfFold) -> bool:
        nonlocal members
        members = choose_members(state.out_of_fold, tuned, groups, state.judged)
        return "tuned" in members

    tuned_metrics = tune_by_folds(tuner, stages, interpolated=interpolated, worth=worth)
    if tuned_metrics["tuned_epochs"]:
        metrics |= tuned_metrics
        runner.state = _joined(runner.state, tuner.state) if len(members) > 1 else tuner.state
        assert runner.state.out_of_fold is not None
        metrics |= {f"cv_{name}": value for name, value in accuracy_and_loss(*runner.state.out_of_fold).items()}
    else:
        members, metrics = ["frozen"], tuned_metrics | metrics
        runner.run.write_history(history)
    show_members(members)
    return metrics | {"members": members}


def choose_members(
    frozen: OutOfFold | None, tuned: OutOfFold, groups: np.ndarray | None = None, judged: np.ndarray | None = None
) -> list[str]:
    """Choose `frozen`, `tuned` or both from their out-of-fold logits `(n, k)` for the same images, in `groups` `(n,)`.
    Where those of the frozen head are for the images `judged` only, these choose, and not both: the mean would have no
    answers to the others. `tuned` where there are none for the frozen head."""
    if frozen is None:
        return ["tuned"]
    rows = np.arange(len(tuned[1])) if judged is None else judged
    labels, within = frozen[1], None if groups is None else groups[rows]
    of_each = [softmax(logits.astype(np.float64)) for logits in (frozen[0], tuned[0][rows])]
    choices = {("frozen",): of_each[0], ("tuned",): of_each[1], ("frozen", "tuned"): (of_each[0] + of_each[1]) / 2}
    losses = {key: -np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-15)) for key, p in choices.items()}
    if len(rows) < len(tuned[1]):
        del losses["frozen", "tuned"]
    chosen: Sequence[str] = ("frozen",)
    for other, values in losses.items():
        if is_gain(losses[tuple(chosen)] - values, within):
            chosen = other
    return list(chosen)


def _joined(frozen: ClassifierState, tuned: ClassifierState) -> ClassifierState:
    """Make one classifier of both, with the mean of their out-of-fold probabilities."""
    data, ensemble = frozen.data, build_ensemble([frozen.classifier, tuned.classifier])
    state = ClassifierState.of_model(ensemble, data, frozen.threads, frozen.phase)
    state.features = frozen.features
    assert frozen.out_of_fold is not None
    assert tuned.out_of_fold is not None
    mean = np.mean([softmax(logits) for logits, _ in (frozen.out_of_fold, tuned.out_of_fold)], axis=0)
    logits = np.log(np.maximum(mean, 1e-30)).astype(np.float32)
    state.out_of_fold = logits, frozen.out_of_fold[1]
    if len(data.indices("val")):
        state.held_out = logits[np.isin(data.indices("train", "val"), data.indices("val"))]
    return state
