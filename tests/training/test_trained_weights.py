"""Tracked variables are restored, saved and compared; the best epoch of all stages is kept."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.support.mirrored import classifier
from tl_research.models.classifier import set_trainable
from tl_research.training.trained_weights import BestEpoch, TrainedWeights, assign_weights


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in model.variables]


def test_only_what_stages_change_is_tracked_and_restored() -> None:
    model, trained = classifier(), TrainedWeights()
    before = values(model)
    trained.track(model, set_trainable(model, 0))
    assert trained.includes(model, model.get_layer("head"))
    assert not trained.includes(model, model.get_layer("backbone"))
    assign_weights(model, {position: value + 1 for position, value in trained.now(model).items()})
    head = trained.now(model)
    trained.track(model, set_trainable(model, "all"))
    assert trained.includes(model, model.get_layer("backbone"))
    after_head = values(model)
    assign_weights(model, {position: value + 1 for position, value in trained.now(model).items()})
    trained.restore(model, head)
    assert all(np.array_equal(a, b) for a, b in zip(values(model), after_head, strict=True))
    trained.restore(model, {})
    assert all(np.array_equal(a, b) for a, b in zip(values(model), before, strict=True))


def test_weights_fit_a_classifier_by_position_and_shape() -> None:
    model = classifier()
    weights = {position: np.array(variable) for position, variable in enumerate(model.variables)}
    assert TrainedWeights.fits(model, weights)
    assert not TrainedWeights.fits(model, {0: weights[0][..., :1]})
    assert not TrainedWeights.fits(model, {len(weights): weights[0]})


def row(stage: str, epoch: int, loss: float) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, "val_loss": loss, "val_accuracy": 1 - loss}


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize(
    ("later", "held_out", "best"),
    [
        (0.4, None, ("head", 1)),
        (0.25, None, ("head", 1)),
        (0.125, None, ("all", 3)),
        (0.25, np.zeros((1, 2)), ("all", 3)),  # equal, but fitted on the validation images too
    ],
    ids=["worse", "equal", "better", "equal-with-validation"],
)
def test_the_best_epoch_of_all_stages(monitor: str, later: float, held_out: Any, best: tuple[str, int]) -> None:
    kept = BestEpoch()
    assert kept.metrics() == {}
    kept.consider([row("head", 0, 0.5), row("head", 1, 0.25), row("head", 2, 0.25)], monitor, {0: np.zeros(2)}, None)
    kept.consider([row("all", 3, later)], monitor, {0: np.ones(2)}, held_out)
    assert (kept.stage, kept.epoch) == best
    assert kept.weights[0].tolist() == ([0, 0] if best[0] == "head" else [1, 1])
    read = BestEpoch.of(kept.state(), kept.metrics())
    assert (read.stage, read.epoch, read.value) == (kept.stage, kept.epoch, kept.value)
    assert read.weights[0].tolist() == kept.weights[0].tolist()
    assert (read.held_out is None) == (kept.held_out is None)
