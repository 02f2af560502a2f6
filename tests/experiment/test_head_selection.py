"""`head=auto`: what fits, what is chosen, and what the run says of it."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tests.conftest import draw_tree
from tests.models.test_nearest import blobs
from tl_research import InputError, Run, compose
from tl_research.experiment import head_selection
from tl_research.experiment.candidates import Candidate, judge
from tl_research.experiment.rules import fitting_heads
from tl_research.models.head import KNN, Linear, Prototype
from tl_research.runs.reader import read_selection
from tl_research.training.closed_form import cross_validate
from tl_research.training.logistic_regression import choose_l2
from tl_research.training.optimizer import LBFGS
from tl_research.training.stage_runner import StageRunner


def test_heads_are_judged_in_the_folds_of_linear_ones() -> None:
    features, labels = blobs(40, 6, 3, views=2, spread=1.5)
    labels[:2] = 3  # alone in its class: it cannot be held out
    given = features, labels, LBFGS(), 0, 2
    linear, other = choose_l2(*given, None), cross_validate(KNN(), *given, None, [6])
    numbers, losses = other.image_losses
    assert numbers.tolist() == linear.image_losses[0].tolist() == list(range(1, 40))
    assert np.isfinite(losses).all()
    assert other.accuracy is not None
    assert 0.4 < other.accuracy < 0.9  # in its own bank each would be right


def test_where_none_can_be_held_out_the_first_stays() -> None:
    features, labels = blobs(2, 6, 2, views=2)
    nothing = cross_validate(KNN(), features, labels, LBFGS(), 0, 2, None, [6])
    assert not nothing.log_losses
    heads = [
        Candidate(name, nothing, 1.0, size, size, order=n) for n, (name, size) in enumerate({"a": 9, "b": 2}.items())
    ]
    chosen, _, why = judge(heads, None)
    assert (chosen.name, "no image can be held out" in why) == ("a", True)


@pytest.mark.parametrize(
    ("overrides", "kinds", "reason"),
    [
        ([], [Linear, Prototype, Prototype, KNN, KNN], ""),
        (["transfer=finetune"], [Linear, Prototype, Prototype], "knn does not learn"),
        (["transfer=finetune", "transfer.choose_by=folds"], [Linear], "choose_by=folds"),
        (["trainer.logit_adjustment=1"], [Linear], "trainer.logit_adjustment"),
        (["head.among=[knn]"], [KNN, KNN], ""),
    ],
)
def test_only_heads_that_fit_are_looked_at(overrides: list[str], kinds: list[type], reason: str) -> None:
    heads, why = fitting_heads(compose(["head=auto", *overrides]))
    assert [type(head) for head in heads] == kinds
    assert reason in why


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=adam"], "need no epochs; add optimizer=lbfgs"),
        (["head.among=[mlp]"], "^head.among=.mlp.: mlp is none of them; give some of linear, prototype, knn$"),
        (["head.among=[]"], "nothing to choose among"),
        (["head.among=[knn]", "transfer=finetune"], "knn does not learn; add linear"),
        (["transfer=scratch", "optimizer=adam"], "the first stage of transfer has none"),
        (["trainer.distribution=multi_worker"], "head=auto chooses on one machine"),
    ],
)
def test_what_cannot_be_chosen_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(["backbone=tiny", "head=auto", *overrides])


def choose(directory: Path, data: Path, *overrides: str) -> Run:
    options = ["backbone=tiny", "head=auto", "data=folder", f"data.root={data}", "callbacks=none"]
    return compose([*options, *overrides]).run(directory)


@pytest.mark.slow
def test_a_run_says_which_head_and_why(tmp_path: Path, colours: Path) -> None:
    done = choose(tmp_path / "run", colours, "head.among=[prototype,knn]")
    said = read_selection(done.directory)["head"]
    assert (done.metrics["head"], done.metrics["chosen_head"]) == ("auto", said["chosen"])
    assert {row["name"] for row in said["candidates"]} == {
        f"{kind}{white}" for kind in ("prototype", "knn") for white in ("", ", whitened")
    }
    assert done.config["head"]["chosen"]["_target_"].endswith(("Prototype", "KNN"))
    assert done.metrics["cv_loss"] == next(row["loss"] for row in said["candidates"] if row["name"] == said["chosen"])
    without = choose(tmp_path / "without", colours, "head.among=[knn]", "data.val=0", "monitor=cv_accuracy").metrics
    assert without["cv_accuracy"] > 0.9


@pytest.mark.slow
def test_a_rare_class_may_be_missing_where_heads_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(head_selection, "MOST_IMAGES", 12)
    data = draw_tree(tmp_path / "data", {"blue": 3, "green": 20, "red": 20})
    done = choose(tmp_path / "run", data, "head.among=[prototype]", "trainer.time_limit=5")
    assert done.metrics["cv_accuracy"] > 0.8
    assert done.calibration["fitted_on"] == "validation"  # for no head was judged on all classes
    assert "time_limit changes nothing" not in caplog.text  # it ends the choice


@pytest.mark.slow
def test_a_resumed_run_keeps_its_head(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(StageRunner, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            choose(tmp_path / "run", colours, "transfer=finetune", "transfer.backbone.epochs=1")
    earlier = read_selection(tmp_path / "run")["head"]["chosen"]
    monkeypatch.setattr(head_selection, "judge", Mock(side_effect=AssertionError))
    done = compose([f"resume={tmp_path / 'run'}"]).run()
    assert done.status["state"] == "done"
    assert done.metrics["chosen_head"] == earlier
