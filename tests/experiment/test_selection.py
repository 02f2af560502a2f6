"""`backbone=auto`: what is looked at, what is chosen, and what the run says of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from tests.conftest import ROOT
from tl_research import InputError, Run, compose
from tl_research.experiment import selection
from tl_research.experiment.candidates import Candidate, judge, search_near
from tl_research.models.backbone import Backbone
from tl_research.reports.card import plain_markdown
from tl_research.reports.leaderboard import Leaderboard, collect
from tl_research.runs.reader import read_selection
from tl_research.serving.facts import facts_of
from tl_research.training.head_coordinates import gram_coordinates, gram_matrix
from tl_research.training.logistic_regression import STRENGTHS, Choice, choose_l2, solve
from tl_research.training.optimizer import LBFGS
from tl_research.training.stage_runner import StageRunner

FEWEST = ["data.per_class=1", "data.val=0", "monitor=cv_accuracy"]
AMONG = "backbone.among=[tiny,{name: tiny@32,seed: 1}]"


def candidate(name: str, losses: np.ndarray, operations: int, **options: Any) -> Candidate:
    image_losses = np.arange(len(losses)), losses
    validated = Choice(1.0, {1.0: losses.mean()}, 0.5, image_losses=image_losses)
    return Candidate(name, validated, 1.0, operations, operations, **options)


@pytest.mark.parametrize(
    ("gain", "noise", "options", "chosen"),
    [
        (0.1, 0.0, {}, "dear"),
        (0.1, 1.0, {}, "cheap"),
        (-0.1, 0.0, {}, "cheap"),
        (0.1, 0.0, {"eligible": False}, "cheap"),
    ],
)
def test_the_cheaper_is_kept_unless_beyond_noise(
    gain: float, noise: float, options: dict[str, Any], chosen: str
) -> None:
    rng = np.random.default_rng(0)
    losses = rng.exponential(1.0, 60)
    cheap = candidate("cheap", losses, 1)
    dear = candidate("dear", losses - gain + noise * rng.normal(size=60), 2, **options)
    best, rows, why = judge([cheap, dear], None)
    assert best.name == chosen
    assert why.startswith(f"chosen: {chosen}")
    assert [row.name for row in rows if "chosen" in row.note] == [chosen]


@pytest.mark.parametrize(("others", "chosen"), [(0, "dear"), (9, "cheap")])
def test_the_best_of_many_must_be_better_by_more(others: int, chosen: str) -> None:
    """A gain of 2.3 standard errors is beyond noise for one candidate, and not for the best of ten."""
    rng = np.random.default_rng(0)
    losses, noise = rng.exponential(1.0, 60), rng.normal(size=60)
    gain = 0.3 * ((noise - noise.mean()) / noise.std() + 2.3 / np.sqrt(60))
    worse = [candidate(f"other{number}", losses + 5, 3 + number) for number in range(others)]
    best, _, why = judge([candidate("cheap", losses, 1), candidate("dear", losses - gain, 2), *worse], None)
    assert best.name == chosen
    assert ("and that is noise (-" in why) == (chosen == "cheap")
    assert ("widened for 11 candidates)" in why) == (chosen == "cheap")


@pytest.mark.parametrize(
    ("worse", "noise", "chosen"),
    [
        (0.0, 0.3, "all"),
        (0.0, 0.001, "cheap"),
        (0.05, 0.3, "all"),
        (-0.01, 0.1, "all"),
        (-0.02, 0.093, "all"),
        (-0.5, 0.3, "cheap"),
    ],
)
def test_all_together_stay_unless_another_is_surely_as_good(worse: float, noise: float, chosen: str) -> None:
    rng = np.random.default_rng(1)
    losses = rng.exponential(1.0, 60)
    noises = rng.normal(size=60)
    cheap = candidate("cheap", losses + worse + noise * (noises - noises.mean()), 1)
    together = candidate("all", losses, 3)
    assert judge([cheap, together], None, together)[0].name == chosen


def test_images_without_a_fold_of_their_own_choose_nothing() -> None:
    labels = np.array([0] * 8 + [1] * 8 + [2])
    features = np.random.default_rng(0).normal(size=(17, 5))
    numbers, losses = solve(features, labels, LBFGS(), seed=0).image_losses
    assert sorted(numbers) == list(range(16))
    assert np.isfinite(losses).all()


def test_gram_matrices_compare_networks_as_their_features_do() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    parts = [rng.normal(size=(60, 8)) * scale + np.eye(3)[labels] @ rng.normal(size=(3, 8)) for scale in (1, 30)]
    solution = solve(np.concatenate(parts, axis=1), labels, LBFGS(), seed=0, widths=[8, 8])
    coordinates = gram_coordinates(sum(map(gram_matrix, parts)))
    choice = choose_l2(coordinates, labels, LBFGS(), seed=0)
    assert choice.l2 == solution.l2
    assert choice.log_losses[choice.l2] == pytest.approx(min(solution.log_losses.values()), abs=2e-3)
    assert np.isfinite(gram_coordinates(np.zeros((3, 3)))).all()  # a network that tells no images apart


@pytest.mark.parametrize("best", [0, 1, 4, 7, 12])
def test_a_penalty_is_found_from_whichever_the_last_had(best: int) -> None:
    tried: list[float] = []

    def choose(strengths: np.ndarray, patience: int) -> Choice:
        losses: dict[float, float] = {}
        for l2 in map(float, strengths):
            losses[l2] = abs(np.log10(l2 / STRENGTHS[best]))
            if min(losses, key=losses.__getitem__) not in list(losses)[-patience:]:
                break
        tried.extend(losses)
        return Choice(min(losses, key=losses.__getitem__), losses)

    for last in range(len(STRENGTHS)):
        assert search_near(last, choose).l2 == STRENGTHS[best]
        assert len(tried) <= 4 + 2 * abs(best - last)
        tried.clear()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.among=[resnet500]"], ["backbone.among", "no backbone resnet500", "resnet50"]),
        (["backbone.among=[]"], ["no weights of a backbone", "backbone.among=["]),
        (["backbone.among=[tiny,tiny]"], ["backbone.among", "tiny is there twice"]),
        (["backbone.default=nothing"], ["backbone.default", "no backbone nothing"]),
        (["transfer=scratch"], ["backbone=auto", "random"]),
    ],
)
def test_bad_choices_are_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compose(["backbone=auto", *overrides]).backbone.preflight()
    assert all(word in str(caught.value) for word in words)


def test_only_backbones_with_weights_are_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    names = [each["name"] for each in compose(["backbone=auto"]).config["backbone"]["among"]]
    assert {"efficientnet_lite0", "resnet50"} <= set(names)
    assert not {"vgg16", "tiny", "custom", "saved", "auto", "combined"} & set(names)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Run:
    options = ["backbone=auto", AMONG, "backbone.default=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]
    folder = tmp_path_factory.mktemp("auto")
    return compose([*options, f"features.store={folder / 'store'}"]).run(folder / "run")


def test_a_run_says_what_was_looked_at_and_chosen(chosen: Run) -> None:
    backbone, said = chosen.config["backbone"], read_selection(chosen.directory)
    assert (backbone["name"], chosen.metrics["backbone"]) == ("auto", "auto")
    assert chosen.metrics["chosen"] == " + ".join(said["chosen"])
    assert chosen.metrics["selection_computed"] == 2 * 36  # each network once
    assert chosen.metrics["features_computed"] == 0  # what was looked at is what is trained on
    assert chosen.metrics["cv_loss"] == min(row["loss"] for row in said["candidates"] if "chosen" in row["note"])
    assert facts_of(chosen)["image_size"] == backbone["chosen"]["image_size"] == chosen.model().input_shape[1]
    card = (chosen.directory / "model_card.md").read_text()
    what = plain_markdown(chosen.metrics["chosen"])
    assert (
        f"An image classifier: {what} (chosen among {len(said['candidates'])} candidates by cross-validation)" in card
    )
    assert "to a side of 64; then `tf`" in card
    assert len(said["candidates"]) == 3  # two networks, and both together
    assert "tiny" in {row["name"] for row in said["candidates"] if "default" in row["note"]}
    assert not any(key.startswith("test_") for row in said["candidates"] for key in row)
    folders = sorted((chosen.directory / "candidates").iterdir())
    assert len(folders) == len(said["candidates"]) == chosen.metrics["candidates"]
    assert {Run.open(folder).status["state"] for folder in folders} == {"done"}
    assert [entry.directory for entry in collect(chosen.directory.parent)] == [chosen.directory]
    with pytest.raises(InputError, match=rf"no model\.keras; .* python train\.py resume={folders[0]} fresh=true$"):
        Run.open(folders[0]).model_file()
    (board,) = Leaderboard.for_each_data_set(collect(chosen.directory / "candidates"))
    assert {row.values[0] for row in board.rows} == {row["name"] for row in said["candidates"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("among", "more", "names"),
    [
        ("[tiny@32,tiny@48]", [], ["default", "tiny@32", "tiny@48"]),
        ("[{name: saved,weights: NET}]", FEWEST, ["default", "saved@weights=net.keras"]),
        ("[tiny@32,{name: tiny,seed: 1}]", ["trainer.time_limit=0.0001"], ["default", "tiny@64"]),
    ],
)
def test_one_at_least_can_be_chosen(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, among: str, more: list[str], names: list[str]
) -> None:
    """Sizes of one network are compared, a saved model has a size of its own, and the default costs nobody the time."""
    monkeypatch.setattr(Backbone, "is_there", lambda _: True)
    compose(["backbone=tiny"]).backbone.build().save(tmp_path / "net.keras")
    among = among.replace("NET", str(tmp_path / "net.keras"))
    options = ["backbone=auto", f"backbone.among={among}", "backbone.default={name: tiny@48,seed: 2}", "callbacks=none"]
    done = compose([*options, "data=folder", f"data.root={colours}", *more]).run(tmp_path / "run")
    said = read_selection(done.directory)["candidates"]
    assert sorted("default" if "default" in row["note"] else row["name"] for row in said) == names
    assert done.metrics["chosen"] in names
    assert not any("Infinity" in path.read_text() for path in done.directory.glob("candidates/*/metrics.json"))


@pytest.mark.slow
def test_a_run_interrupted_in_its_choice_goes_on(
    tmp_path: Path, colours: Path, chosen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["backbone=auto", AMONG, "backbone.default=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]
    with monkeypatch.context() as patched:
        patched.setattr(selection, "judge", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compose(options).run(tmp_path / "run")
    assert Run.open(tmp_path / "run").status["state"] == "interrupted"
    resumed = compose([f"resume={tmp_path / 'run'}"]).run()
    assert resumed.metrics["chosen"] == chosen.metrics["chosen"]
    assert resumed.metrics["cv_loss"] == chosen.metrics["cv_loss"]
    assert resumed.config["backbone"] == chosen.config["backbone"]
    assert compose([f"resume={tmp_path / 'run'}"]).run().metrics == resumed.metrics  # done before


@pytest.mark.slow
def test_a_head_on_a_changed_backbone_is_judged_anew(tmp_path: Path, colours: Path) -> None:
    options = ["backbone=auto", AMONG, "backbone.default=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]
    options += ["transfer=finetune_all", "transfer.backbone.epochs=1", "+transfer.again=${transfer.head}"]
    done = compose(options).run(tmp_path / "run")
    assert done.metrics["cv_loss"] not in [row["loss"] for row in read_selection(done.directory)["candidates"]]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_choice(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["backbone=auto", AMONG, "backbone.default=tiny", "data=folder", f"data.root={colours}", "callbacks=none"]
    options += ["transfer=finetune", "transfer.backbone.epochs=2", "trainer.time_limit=5"]
    with monkeypatch.context() as patched:
        patched.setattr(StageRunner, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compose(options).run(tmp_path / "run")
    earlier = read_selection(tmp_path / "run")["chosen"]
    monkeypatch.setattr(selection, "judge", Mock(side_effect=AssertionError))
    done = compose([f"resume={tmp_path / 'run'}"]).run()
    assert done.status["state"] == "done"
    assert read_selection(done.directory)["chosen"] == earlier
    assert done.metrics["chosen"] == " + ".join(earlier)


@pytest.mark.slow
def test_a_sweep_takes_auto_among_its_options(tmp_path: Path, colours: Path) -> None:
    command = ["-m", "backbone=tiny,auto", AMONG, "backbone.default=tiny", "data=folder", f"data.root={colours}"]
    result = subprocess.run(
        [sys.executable, ROOT / "train.py", *command, f"hydra.sweep.dir={tmp_path / 'sweep'}", "callbacks=none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    runs = [entry for entry in collect(tmp_path / "sweep") if entry.state == "done"]
    assert sorted(str(entry.metrics.get("backbone")) for entry in runs) == ["None", "auto"]
