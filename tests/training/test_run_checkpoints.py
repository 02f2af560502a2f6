"""A classifier's state is saved in checkpoints and restored into a newly loaded classifier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from tests.support.mirrored import classifier
from tl_research import InputError
from tl_research.models.classifier import set_trainable
from tl_research.runs.checkpoint import CheckpointState
from tl_research.runs.run import Run
from tl_research.training.classifier_state import ClassifierState
from tl_research.training.run_checkpoints import RunCheckpoints
from tl_research.training.trained_weights import BestEpoch


def loaded_state(run: Run) -> ClassifierState:
    model = classifier()
    features: Any = SimpleNamespace(computed=1, hit=2, after_training=lambda: "features after training")
    return ClassifierState(SimpleNamespace(), model.layers[1], model.layers[2], features, 1, run.phase)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.metrics = {"l2": 0.5}
    return run


def parts(run: Run) -> dict[str, CheckpointState]:
    state = run.checkpoints.read()
    assert state is not None
    return {name: state.part(name) for name in state.facts}


def test_features_follow_the_backbone(run: Run) -> None:
    state = loaded_state(run)
    loaded = state.features
    state.update_features()
    assert state.features is loaded
    state.backbone_changed = True
    state.update_features()
    assert state.features == "features after training"
    state.use_loaded_backbone()
    assert (state.features, state.backbone_changed) == (loaded, False)


def test_another_head_makes_another_classifier(run: Run) -> None:
    state = loaded_state(run)
    before = state.classifier
    assert state.classifier is before
    state.replace_head(keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="logits")], name="head"))
    assert state.classifier is not before
    assert state.classifier.get_layer("head") is state.head
    assert state.image_size == 16


def test_a_checkpoint_restores_the_state(run: Run) -> None:
    state, best = loaded_state(run), BestEpoch("head", 0, 0.5, {0: np.ones(2)})
    state.trained.track(state.classifier, set_trainable(state.classifier, "all"))
    state.backbone_changed, state.held_out = True, np.eye(2)
    for variable in state.trained.variables(state.classifier):
        variable.assign(variable + 1)
    history = [{"epoch": 0, "stage": "head"}]
    RunCheckpoints(run, state, history).save(1, best, CheckpointState({"rows": []}))
    run.metrics, other = {}, loaded_state(run)
    other.out_of_fold = np.eye(2), np.arange(2)  # of a head chosen again, which later stages have changed
    restored = RunCheckpoints(run, other, [])
    assert restored.restore(parts(run)).metrics() == best.metrics()
    assert run.metrics == {"l2": 0.5, **best.metrics()}
    assert restored.history == history
    assert restored.used > 0
    assert (other.features.computed, other.features.hit, other.backbone_changed) == (2, 4, True)
    np.testing.assert_array_equal(other.held_out, state.held_out)
    assert other.out_of_fold is None
    assert other.has_changed(other.backbone)
    for a, b in zip(state.classifier.weights, other.classifier.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_network_is_refused(run: Run) -> None:
    checkpoints = RunCheckpoints(run, loaded_state(run), [])
    checkpoints.save(0, BestEpoch())
    content = parts(run) | {"moved": CheckpointState({}, {"0": np.zeros(99)})}
    with pytest.raises(InputError, match="its checkpoint is of another network; add fresh=true"):
        checkpoints.restore(content)


def test_checkpoints_take_a_tenth_of_the_time_at_most(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    written: list[int] = []

    def slow_write(*_: object) -> None:
        clock[0] += 2.0
        written.append(int(clock[0]))

    monkeypatch.setattr("tl_research.runs.checkpoint.CheckpointFolder.write", slow_write)
    checkpoints, loop = RunCheckpoints(run, loaded_state(run), []), CheckpointState({"rows": []})
    for whole in (True, True, False):
        checkpoints.save_epoch(0, BestEpoch(), loop, whole=whole)
    assert written == [2, 4], "the second epoch came too soon; within an epoch the loop decides"
    clock[0] += 20.0
    checkpoints.save_epoch(0, BestEpoch(), loop, whole=True)
    assert written == [2, 4, 26]
