"""The command lr_find: which stage it tests, what it writes, and that it leaves nothing else."""

from __future__ import annotations

import csv
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tl_research import InputError, compose
from tl_research.__main__ import app
from tl_research.commands.lr_find import find_learning_rate, write_suggestion
from tl_research.experiment.experiment import Experiment
from tl_research.training.lr_range_test import FIRST, Curve, RangeTest
from tl_research.training.stage_runner import StageRunner

# The stage that is tested


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, str]]:
    """Record the experiment that `find` rehearses and the stage that it tests."""
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
def test_only_stages_up_to_the_tested_one_are_fitted(
    rehearsed: list[tuple[Experiment, str]], overrides: list[str], stage: str | None, tested: str, fitted: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(compose(["backbone=tiny", "trainer.time_limit=1", *overrides]), stage)
    experiment, chosen = rehearsed[0]
    assert (chosen, list(experiment.transfer)) == (tested, fitted)
    assert experiment.trainer.time_limit is None
    assert "tensorboard" not in experiment.callbacks


# The command

Command = Callable[..., Any]


@pytest.fixture
def command(cwd: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Run `command("transfer=finetune", ...)` in the folder `cwd`, on a tiny network and a few images."""
    monkeypatch.chdir(cwd)
    terminate = signal.getsignal(signal.SIGTERM)
    options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}"]
    yield lambda *arguments: CliRunner().invoke(app, ["lr_find", *options, *arguments])
    signal.signal(signal.SIGTERM, terminate)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_a_curve_and_the_override(
    command: Command, cwd: Path, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(StageRunner, "solve_again", None)  # the head must not be refitted
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
    assert f"transfer=finetune transfer.backbone.unfreeze=1 {line}\n" in first.stdout, "without the given rate"
    stage = compose(["backbone=tiny", *overrides, line]).transfer["backbone"]
    assert stage.learning_rate == float(line.partition("=")[2])


def test_a_stage_without_the_key_gets_it_with_a_plus(tmp_path: Path) -> None:
    experiment = compose(["backbone=tiny", "optimizer=adam"])
    del experiment.config["transfer"]["head"]["learning_rate"]
    flat = Curve()
    for _ in flat.planned:
        flat.add(1.0)
    write_suggestion(experiment, ["optimizer=adam"], "head", flat, tmp_path)
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
    ("wrong", "message"),
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
def test_bad_requests_fail_in_one_line_before_any_reading(
    command: Command, cwd: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], message: str
) -> None:
    monkeypatch.setattr(Experiment, "rehearse", lambda *_: pytest.fail("the test has begun"))
    (cwd / "a-file").write_text("")
    refused = command(*wrong)
    assert isinstance(refused.exception, InputError), refused.output
    assert refused.exception.args[0].count("\n") == 0
    with pytest.raises(InputError, match=message):
        raise refused.exception
    assert [path.name for path in cwd.iterdir()] == ["a-file"]
