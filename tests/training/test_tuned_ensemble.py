"""Fine-tuning beside the frozen answer (`transfer.ensemble`), and what there is time for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tests.training.test_fold_tuning import TUNED, rows, run
from tl_research import InputError, compose
from tl_research.data.sources import Folder
from tl_research.metrics.probabilities import softmax
from tl_research.models.ensemble import ensemble_members
from tl_research.training import time_limit, tuned_ensemble
from tl_research.training.time_limit import TooSlowError, in_time
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


def test_without_frozen_answers_to_all_images_the_tuned_stays() -> None:
    assert choose_members(None, (logits_right_on(slice(90)), LABELS)) == ["tuned"]


@pytest.mark.parametrize(("epochs", "seen"), [(9, 6), (12, 3)])
def test_what_would_end_too_late_is_left_out(epochs: int, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 20, 21, 22, 23, 24, 25])  # the first update, which is compiled, does not count
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    given = in_time(lambda epoch, skip: (number for number in range(skip, 6)), 6, epochs, 80)(0, 0)
    taken = []
    with pytest.raises(TooSlowError, match=r"0\.1 minutes") if seen < 6 else nullcontext():
        for number in given:
            taken.append(number)
    assert taken == list(range(seen))


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
    monkeypatch.setattr(tuned_ensemble, "choose_members", lambda *_: ["frozen", "tuned"])
    done = run(tmp_path / "run", colours, "transfer.ensemble=true", "head=auto", "head.among=[knn]", "data.val=0.25")
    assert done.metrics["members"] == ["frozen", "tuned"]
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
def test_of_several_networks_the_smallest_is_tuned(tmp_path: Path, colours: Path) -> None:
    parts = ["backbone=combined", "backbone.parts=[tiny,{name: tiny@32,seed: 1}]"]
    done = run(tmp_path / "run", colours, "transfer.ensemble=true", *parts, "transfer.backbone.epochs=1")
    assert done.metrics["members"] in (["frozen"], ["tuned"], ["frozen", "tuned"])
    assert done.status["state"] == "done"
