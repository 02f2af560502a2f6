"""Fine-tuning beside the frozen answer (`transfer.ensemble`), and what there is time for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from tests.training.test_fold_tuning import TUNED, rows, run
from tl_research import InputError, compose
from tl_research.data.sources import Folder
from tl_research.metrics.probabilities import softmax
from tl_research.models.ensemble import ensemble_members
from tl_research.reports.card import plain_markdown
from tl_research.serving.facts import facts_of
from tl_research.training import fold_tuning, time_limit, tuned_ensemble
from tl_research.training.stage import Stage
from tl_research.training.time_limit import EpochBudget, TooSlowError
from tl_research.training.tuned_ensemble import choose_members

LABELS = np.arange(90) % 3


def logits_right_on(part: slice) -> np.ndarray:
    """Make logits of a classifier that is right on these images, and knows nothing of the others."""
    logits = np.zeros((90, 3))
    logits[part] = 4 * np.eye(3)[LABELS[part]]
    return logits


@pytest.mark.parametrize(
    ("frozen", "tuned", "members"),
    [
        (slice(80), slice(80), ["frozen"]),
        (slice(20), slice(90), ["tuned"]),
        (slice(80), slice(1), ["frozen"]),
        (slice(45), slice(45, 90), ["frozen", "tuned"]),
    ],
)
def test_each_member_must_gain_beyond_noise(frozen: slice, tuned: slice, members: list[str]) -> None:
    rng = np.random.default_rng(0)
    wrong = 3 * rng.normal(size=(90, 3)) if len(members) > 1 else 0  # errors that the mean evens out
    answers = [(logits_right_on(part) + wrong * sign, LABELS) for part, sign in ((frozen, 1), (tuned, -1))]
    assert choose_members(*answers) == members


def test_a_gain_within_a_standard_error_is_none() -> None:
    noise = np.random.default_rng(0).normal(size=90)
    margin = 1 + 0.3 * ((noise - noise.mean()) / noise.std() + 0.15)  # gains 0.6, and for the mean 0.9, errors
    frozen, tuned = (np.zeros((90, 3)) for _ in range(2))
    frozen[np.arange(90), LABELS], tuned[np.arange(90), LABELS] = 1, margin
    assert choose_members((frozen, LABELS), (tuned, LABELS)) == ["frozen"]


def test_without_frozen_answers_the_tuned_stays() -> None:
    assert choose_members(None, (logits_right_on(slice(90)), LABELS)) == ["tuned"]


@pytest.mark.parametrize(
    ("right", "members"), [(slice(80), ["frozen"]), (slice(1), ["tuned"]), (slice(30), ["frozen"])]
)
def test_of_many_images_some_compare_both(right: slice, members: list[str]) -> None:
    """The tuned one is right on those before 30 alone."""
    judged = np.random.default_rng(0).permutation(90)[:60]
    frozen = logits_right_on(right)[judged], LABELS[judged]
    assert choose_members(frozen, (logits_right_on(slice(30)), LABELS), judged=judged) == members


@pytest.mark.parametrize(("left", "epochs"), [(500, 8), (100, 4), (25, 1), (20, 0)])
def test_a_stage_is_as_long_as_there_is_time_for(left: int, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch has 6 updates of a second each, after the first, which is compiled, and counts 4 times."""
    clock = iter([20, 23])
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    loop: Any = SimpleNamespace(
        stage=Stage(epochs=8), batches=lambda _, skip: (n for n in range(skip, 6)), batches_per_epoch=6
    )
    budget = EpochBudget(8, 4.0, limit=23 + left)
    budget.measure(loop)
    with nullcontext() if epochs else pytest.raises(TooSlowError, match=r"an epoch would take 0\.1 minutes"):
        assert list(loop.batches(0, 0)) == list(range(6))
        assert loop.stage.epochs == epochs
        assert budget.shortened(Stage(epochs=16)).epochs == 2 * epochs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transfer.choose_by=validation"], "add transfer.choose_by=folds$"),
        (["transfer.ensemble=2"], "^transfer.ensemble=2: should be false or true$"),
        (["trainer.distribution=mirrored"], "trains on one device"),
    ],
)
def test_what_cannot_be_joined_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose([*TUNED, "data.root=PHOTOS", "transfer.ensemble=true", *overrides])


@pytest.mark.slow
def test_the_mean_of_both_is_one_model(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(tuned_ensemble, "choose_members", lambda *given: seen.append(given) or ["frozen", "tuned"])
    done = run(tmp_path / "run", colours, "transfer.ensemble=true", "head=auto", "head.among=[knn]", "data.val=0.25")
    assert done.metrics["members"] == ["frozen", "tuned"]
    (frozen, labels), (tuned, _) = seen[0][:2]
    mean = np.mean([softmax(logits.astype(np.float64)) for logits in (frozen, tuned)], axis=0)
    assert done.metrics["cv_loss"] == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    assert len(rows(done.directory, "history.csv")) == 1 + done.metrics["tuned_epochs"]
    assert len(done.answers("validation.csv")) == done.metrics["num_val"]
    model = keras.models.load_model(done.directory / "model.keras", safe_mode=True)
    assert len(ensemble_members(model)) == 2
    data = Folder(root=str(colours)).load()
    test = data.indices("test")
    pixels = np.stack([data.pixels(i, model.input_shape[1]) for i in test]).astype(np.float32)
    recorded = {row["path"]: row for row in done.answers("predictions.csv")}
    said = [[float(recorded[str(data.paths[i])][f"p_{name}"]) for name in done.class_names()] for i in test]
    np.testing.assert_allclose(softmax(np.asarray(model(pixels, training=False))), said, atol=1e-3)


@pytest.mark.slow
def test_of_several_networks_the_smallest_is_tuned(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["backbone=combined", "backbone.parts=[tiny,{name: tiny@32,seed: 1}]"]
    monkeypatch.setattr(tuned_ensemble, "choose_members", lambda *_: ["tuned"])
    monkeypatch.setattr(fold_tuning, "choose_tuning", lambda logits, *_: list(logits)[-1])
    done = run(tmp_path / "run", colours, "transfer.ensemble=true", *parts, "transfer.backbone.epochs=1")
    assert done.metrics["members"] == ["tuned"]
    name = done.metrics["tuned_backbone"]
    assert facts_of(done)["image_size"] == done.model().input_shape[1]  # that of the one that answers
    assert done.weights["backbone"] == name
    card = (done.directory / "model_card.md").read_text()
    assert f"An image classifier: {plain_markdown(name)} (fine-tuned)" in card
