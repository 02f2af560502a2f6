"""The learning-rate range test: its average, its suggestion on curves of every kind, and the command, which leaves
nothing but what it says."""

from __future__ import annotations

import csv
import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tl_research import InputError, compose
from tl_research.__main__ import app
from tl_research.commands.lr_find import find_learning_rate, write_suggestion
from tl_research.experiment.experiment import Experiment
from tl_research.reports import figures
from tl_research.training.lr_range_test import FIRST, LAST, LEAST_STEPS, Curve, RangeTest, suggest
from tl_research.training.stage_runner import StageRunner

CHANCE = math.log(2)
positive = st.floats(1e-6, 1e3)


def curve(losses: list[float] | Callable[[float], float], steps: int = 100, chance: float = CHANCE) -> Curve:
    """A test that went so; a function is of the rate."""
    made = Curve(steps, chance)
    for loss in map(losses, made.planned) if callable(losses) else losses:
        made.add(loss)
        if made.risen:
            break
    return made


# The average


@settings(deadline=None)
@given(st.lists(positive, min_size=1, max_size=60), st.integers(LEAST_STEPS, 500))
def test_the_average_is_of_all_losses_so_far_the_later_the_more(losses: list[float], steps: int) -> None:
    made = Curve(steps, chance=1e9)
    for loss in losses:
        made.add(loss)
    assert made.rates == made.planned[: len(losses)]
    for number, found in enumerate(made.smoothed, 1):
        weights = made.beta ** np.arange(number)[::-1]
        assert found == pytest.approx(np.average(losses[:number], weights=weights), rel=1e-9)
        assert min(losses) * (1 - 1e-9) <= found <= max(losses) * (1 + 1e-9)


@settings(deadline=None)
@given(positive, st.integers(LEAST_STEPS, 500))
def test_a_constant_is_its_own_average_and_never_rises(loss: float, steps: int) -> None:
    made = curve(steps * [loss], steps)
    np.testing.assert_allclose(made.smoothed, loss)
    assert (len(made.rates), made.rates[0], made.rates[-1]) == (steps, FIRST, pytest.approx(LAST))
    assert suggest(made)[0] == pytest.approx(LAST / 10)
    assert "says little" in suggest(made)[1]


@pytest.mark.parametrize("last", [math.nan, math.inf, 1e6])
def test_a_loss_that_is_no_number_or_huge_ends_the_test(last: float) -> None:
    made = curve([*50 * [1.0], last, *49 * [1.0]])
    assert made.risen
    assert len(made.losses) == 50 + math.isfinite(last)
    assert np.isfinite(made.smoothed).all()


# The suggestion


@settings(deadline=None)
@given(st.lists(positive, min_size=14, max_size=100), st.booleans())
def test_a_suggestion_is_a_rate_of_two_digits_and_at_most_a_tenth_of_the_last(
    losses: list[float], broken: bool
) -> None:
    made = curve([*losses, math.nan] if broken else losses)
    rate, why = suggest(made)
    assert FIRST / 30 * 0.95 <= rate <= made.rates[-1] / 10 * 1.05
    assert rate == float(f"{rate:.1e}")
    assert why.startswith("the loss ")


@settings(deadline=None)
@given(st.lists(positive, min_size=14, max_size=100), st.integers(-8, 8))
def test_the_unit_of_the_loss_does_not_matter(losses: list[float], power: int) -> None:
    scaled = curve([loss * 2.0**power for loss in losses], chance=CHANCE * 2.0**power)
    assert suggest(scaled)[0] == suggest(curve(losses))[0]


@settings(max_examples=30, deadline=None)
@given(st.floats(-4.5, -1.5), st.floats(0.1, 5), st.sampled_from([50, 100, 300]), st.integers(0, 99))
def test_where_the_loss_falls_it_is_where_it_falls(middle: float, height: float, steps: int, seed: int) -> None:
    noise = np.random.default_rng(seed)

    def loss(rate: float) -> float:
        fallen = 1 / (1 + math.exp(-3 * (math.log10(rate) - middle)))
        exploded = (rate / 10 ** (middle + 2.2)) ** 4
        return height * (1 - 0.9 * fallen + exploded) * math.exp(noise.normal(0, 0.02))

    rate, why = suggest(curve(loss, steps))
    assert "half of the way down" in why
    assert abs(math.log10(rate) - middle) < 0.5


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 0), st.floats(-4, -2), st.sampled_from([50, 100, 300]), st.integers(0, 99))
def test_at_an_optimum_it_is_a_thirtieth_of_where_the_loss_rises(
    end: float, level: float, steps: int, seed: int
) -> None:
    """Also where single hard images make peaks before."""
    noise = np.random.default_rng(seed)

    def loss(rate: float) -> float:
        peak = 0.1 if noise.random() < 0.03 else 0
        return 10**level * math.exp(noise.normal(0, 0.3)) + peak + 100 * (rate > 10**end)

    rate, why = suggest(curve(loss, steps))
    assert "hardly fell" in why
    assert -0.1 < math.log10(30 * rate) - end < 8 / (steps - 1) + 0.03  # two digits


@pytest.mark.parametrize("begin", [0.7, 0.9])
def test_a_ruined_network_that_is_back_at_chance_tells_nothing(begin: float) -> None:
    rate, why = suggest(curve(lambda rate: begin if rate < 1e-3 else 5.0 if rate < 1e-1 else CHANCE))
    assert rate == pytest.approx(1e-4, rel=0.3)
    assert "hardly fell" in why


def test_single_large_losses_at_the_beginning_end_nothing() -> None:
    made = curve([0.001, 2.0, 0.001, 0.001, 3.0, *95 * [0.001]])
    assert len(made.losses) == 100


@pytest.mark.parametrize("before", [0, 3, 13])
def test_a_loss_that_is_no_number_at_once_is_told(before: int) -> None:
    with pytest.raises(InputError, match=r"no number at a rate of .* already; add trainer.clip_norm=1"):
        suggest(curve([*before * [1.0], math.nan]))


def test_the_picture_of_any_curve_can_be_drawn() -> None:
    for made in (curve(100 * [0.0]), curve(100 * [1e-12]), curve([*20 * [0.7], 1e30]), curve([1.0, math.nan])):
        page = figures.learning_rates("stage head", made.rates, made.losses, made.smoothed, 1e-3)
        assert (page.dtype, page.shape[2]) == (np.uint8, 3)


# The stage that is tested


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, str]]:
    """What `find` would have rehearsed, and which stage it would have tested."""
    seen: list[tuple[Experiment, str]] = []

    def rehearse(experiment: Experiment, fits: dict[str, Callable[..., RangeTest]]) -> None:
        seen.append((experiment, next(iter(fits))))
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "rehearse", rehearse)
    return seen


@pytest.mark.parametrize(
    ("overrides", "stage", "tested", "fitted"),
    [
        (["transfer=finetune"], None, "backbone", ["head", "backbone"]),
        (["transfer=finetune", "optimizer=adam"], "head", "head", ["head"]),
        (["transfer=frozen", "optimizer=adam"], None, "head", ["head"]),
        (["transfer=scratch"], None, "all", ["all"]),
        (["transfer=gradual"], None, "block1", ["head", "block1"]),
        (["transfer=gradual"], "block3", "block3", ["head", "block1", "block2", "block3"]),
    ],
)
def test_the_stages_before_the_tested_one_are_fitted_and_none_after(
    rehearsed: list[tuple[Experiment, str]], overrides: list[str], stage: str | None, tested: str, fitted: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(compose(["backbone=tiny", "trainer.time_limit=1", *overrides]), stage)
    experiment, found = rehearsed[0]
    assert (found, list(experiment.transfer)) == (tested, fitted)
    assert experiment.trainer.time_limit is None
    assert "tensorboard" not in experiment.callbacks


# The command

Command = Callable[..., Any]


@pytest.fixture
def command(cwd: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`command("transfer=finetune", ...)` in the folder `cwd`, on a tiny network and a few images."""
    monkeypatch.chdir(cwd)
    terminate = signal.getsignal(signal.SIGTERM)
    options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}"]
    yield lambda *arguments: CliRunner().invoke(app, ["lr_find", *options, *arguments])
    signal.signal(signal.SIGTERM, terminate)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_a_curve_and_the_override_and_touches_no_run(
    command: Command, cwd: Path, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(StageRunner, "solve_again", None)  # the head is of no use any more
    overrides = ["transfer=finetune", "transfer.backbone.learning_rate=5", "transfer.backbone.unfreeze=1"]
    run = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}", "callbacks=none"]
    compose([*run, "optimizer=adam", "transfer.head.epochs=1"]).run(cwd / "run")
    before = contents(cwd)

    first = command(*overrides, "--steps", "40", "--output", "found")
    assert first.exit_code == 0, first.exception
    assert contents(cwd / "run") == {path.removeprefix("run/"): content for path, content in before.items()}
    assert {path.name for path in cwd.iterdir()} == {"run", "found"}
    assert {path.name for path in (cwd / "found").iterdir()} == {"lr_find.png", "lr_find.csv", "override.txt"}
    assert not list((tmp_path / "temporary").iterdir())

    rows = list(csv.DictReader((cwd / "found" / "lr_find.csv").read_text().splitlines()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert 5 < len(rows) <= 40
    assert rates[0] == FIRST
    assert rates == sorted(rates)
    with Image.open(cwd / "found" / "lr_find.png") as picture:
        assert picture.size == (880, 550)

    line = (cwd / "found" / "override.txt").read_text().strip()
    assert line.startswith("transfer.backbone.learning_rate=")
    assert f"python train.py backbone=tiny backbone.image_size=32 data=folder data.root={colours} " in first.stdout
    assert f"transfer=finetune transfer.backbone.unfreeze=1 {line}\n" in first.stdout, "without the rate that was given"
    stage = compose(["backbone=tiny", *overrides, line]).transfer["backbone"]
    assert stage.learning_rate == float(line.partition("=")[2])


def test_a_stage_without_the_key_gets_it_with_a_plus(tmp_path: Path) -> None:
    experiment = compose(["backbone=tiny", "optimizer=adam"])
    del experiment.config["transfer"]["head"]["learning_rate"]
    write_suggestion(experiment, ["optimizer=adam"], "head", curve(100 * [1.0]), tmp_path)
    assert (tmp_path / "override.txt").read_text() == "+transfer.head.learning_rate=1\n"


@pytest.mark.parametrize(
    "place", ["tl_research.backend.train_step.TrainStep.__call__", "tl_research.reports.figures.learning_rates"]
)
def test_an_interrupted_test_leaves_nothing(
    command: Command, cwd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(place, interrupted)
    result = command("optimizer=adam", "transfer=frozen", "--steps", "20")
    assert result.exit_code != 0
    assert not list(cwd.iterdir())
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["transfr=finetune"], "transfr: there is no such key; nearest: transfer"),
        (
            ["optimizer=lbfgs", "transfer=frozen"],
            "transfer.head: .* add head=linear optimizer=adam, or transfer=finetune",
        ),
        (["head=knn"], "transfer.head: .* add head=linear optimizer=adam, or transfer=finetune"),
        (["transfer=finetune", "--stage", "head"], "--stage head: .* optimizer=adam, or give --stage backbone"),
        (["transfer=finetune", "--stage", "nope"], "--stage nope: .* those of transfer are head, backbone"),
        (["transfer=finetune", "--steps", "3"], "--steps 3: too few to see a curve; give 20 or more"),
        (["transfer=finetune", "--output", "a-file/folder"], "--output a-file/folder: cannot be written"),
        (["transfer=finetune", "shard=0/2"], "shard=0/2: lr_find takes the overrides of a whole run"),
        (
            ["transfer=finetune", "trainer.distribution=multi_worker"],
            "trainer.distribution=multi_worker: .* one machine",
        ),
        (["transfer=finetune", "-m"], "-m: lr_find tests one configuration"),
    ],
    ids=lambda wrong: wrong[-1] if isinstance(wrong, list) else "",
)
def test_what_cannot_be_tested_is_one_line_before_anything_is_read(
    command: Command, cwd: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], told: str
) -> None:
    monkeypatch.setattr(Experiment, "rehearse", lambda *_: pytest.fail("it has begun"))
    (cwd / "a-file").write_text("")
    refused = command(*wrong)
    assert isinstance(refused.exception, InputError), refused.output
    assert refused.exception.args[0].count("\n") == 0
    with pytest.raises(InputError, match=told):
        raise refused.exception
    assert [path.name for path in cwd.iterdir()] == ["a-file"]
