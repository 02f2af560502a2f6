"""The leaderboard: from run directories alone, the validation metric ranks, repetitions are one row."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy.stats import binomtest, t
from typer.testing import CliRunner

from tl_research import InputError
from tl_research.__main__ import app
from tl_research.reports.leaderboard import Leaderboard, collect
from tl_research.reports.summary import ONLY_IN_FILES, show_leaderboard
from tl_research.system import console


def draw_run(
    folder: Path, overrides: list[str], state: str = "done", reason: str | None = None, **metrics: float
) -> None:
    """A run directory with nothing in it but what a leaderboard reads."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    seed = next((int(text[5:]) for text in overrides if text.startswith("seed=")), 0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "monitor": "val_accuracy"}))
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": reason}))
    if state == "done":
        (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    values = {"a": [0.80, 0.90, 0.85], "b": [0.70, 0.81, 0.74], "c": [0.79, 0.91, 0.85]}
    for name, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            draw_run(
                tmp_path / f"{name}{seed}",
                [f"head={name}", f"seed={seed}", "data=folder"],
                val_accuracy=accuracy,
                test_accuracy=1 - accuracy,
                seconds_head=2.0,
                seconds_save=1.0,
                features_computed=10 - 5 * seed,
            )
    draw_run(tmp_path / "d", ["head=d", "data=folder"], "failed", "InputError: no | weights")
    return tmp_path


def test_a_run_in_the_current_folder_is_found(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    assert len(collect(Path("a0"))) == 1
    monkeypatch.chdir("a0")
    assert len(collect(Path())) == 1


def test_the_validation_metric_ranks_and_failures_come_last(sweep: Path) -> None:
    board = Leaderboard.of(collect(sweep))
    assert list(board.keys) == ["head"], "the seed repeats, and data=folder is everywhere"
    assert [row.values for row in board.rows] == [("a",), ("c",), ("b",), ("d",)]
    assert board.rows[-1].mean("val_accuracy") is not None
    assert math.isnan(board.rows[-1].mean("val_accuracy"))
    assert board.failures() == ["head=d seed=0: failed: InputError: no | weights"]


def test_of_equal_runs_the_last_finished_one_counts(tmp_path: Path) -> None:
    low_high = {"val_accuracy_low": 0.88, "val_accuracy_high": 0.98}
    draw_run(tmp_path / "1", ["head=a"], val_accuracy=0.94, **low_high)
    draw_run(tmp_path / "2", ["head=a", "seed=0"], val_accuracy=0.95, **low_high)
    draw_run(tmp_path / "3", ["head=a"], "failed", "no room")
    draw_run(tmp_path / "4", ["head=b"], val_accuracy=0.5)
    for number in range(1, 5):
        os.utime(tmp_path / str(number) / "status.json", (number, number))
    first = Leaderboard.of(collect(tmp_path)).rows[0]
    assert [entry.directory.name for entry in first.entries] == ["2"]
    assert (first.mean("val_accuracy"), first.interval("val_accuracy")) == (0.95, (0.88, 0.98))


def test_a_run_without_overrides_groups_with_one_that_has_a_seed(tmp_path: Path) -> None:
    for seed, overrides in enumerate(([], ["seed=1"])):
        draw_run(tmp_path / str(seed), overrides, val_accuracy=0.9)
        config = {"seed": seed, "monitor": "val_accuracy", "choices": {"head": "linear", "data": "folder"}}
        (tmp_path / str(seed) / "config.yaml").write_text(yaml.safe_dump(config))
    board = Leaderboard.of(collect(tmp_path))
    assert [len(row.entries) for row in board.rows] == [2]


def test_a_difference_without_noise_has_no_star(tmp_path: Path) -> None:
    for seed in range(3):
        draw_run(tmp_path / f"a{seed}", ["head=a", f"seed={seed}"], val_accuracy=0.96)
        draw_run(tmp_path / f"b{seed}", ["head=b", f"seed={seed}"], val_accuracy=0.95)
    board = Leaderboard.of(collect(tmp_path))
    assert board.against_best(board.rows[1]) == "-0.010 ± 0.000"


@pytest.mark.parametrize("damaged", ["", "{", "[1]"])
def test_a_damaged_file_does_not_hide_the_other_runs(tmp_path: Path, damaged: str) -> None:
    draw_run(tmp_path / "a", ["head=a"], val_accuracy=0.9)
    draw_run(tmp_path / "b", ["head=b"], val_accuracy=0.8)
    draw_run(tmp_path / "c", ["head=c"], val_accuracy=0.8)
    (tmp_path / "b" / "metrics.json").write_text(damaged)
    (tmp_path / "b" / "config.yaml").write_text("{{{")
    (tmp_path / "c" / "status.json").write_text(damaged)
    (tmp_path / "c" / ".hydra" / "overrides.yaml").unlink()
    assert Leaderboard.of(collect(tmp_path)).rows[0].values == ("a",)


def test_a_lower_loss_ranks_first_and_the_test_metric_never_does(tmp_path: Path) -> None:
    for name, loss in (("a", 0.5), ("b", 0.3)):
        draw_run(tmp_path / name, [f"head={name}"], val_loss=loss, test_loss=1 - loss)
        (tmp_path / name / "config.yaml").write_text("monitor: test_loss\nseed: 0\n")
    board = Leaderboard.of(collect(tmp_path))
    assert (board.monitor, [row.values[0] for row in board.rows]) == ("val_loss", ["b", "a"])


def test_repetitions_are_a_mean_with_its_interval(sweep: Path) -> None:
    row = Leaderboard.of(collect(sweep)).rows[2]
    half = t.ppf(0.975, 2) * np.std([0.70, 0.81, 0.74], ddof=1) / np.sqrt(3)
    assert row.mean("val_accuracy") == pytest.approx(0.75)
    assert row.interval("val_accuracy") == pytest.approx((0.75 - half, 0.75 + half))
    assert Leaderboard.of(collect(sweep)).rows[0].interval("test_accuracy")[0] >= 0


def test_one_run_has_the_interval_of_its_images(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=a"], val_accuracy=0.9, val_accuracy_low=0.8, val_accuracy_high=0.95)
    (row,) = Leaderboard.of(collect(tmp_path)).rows
    assert row.interval("val_accuracy") == (0.8, 0.95)
    assert row.interval("val_loss") is None


def test_differences_are_judged_seed_by_seed(sweep: Path) -> None:
    board = Leaderboard.of(collect(sweep))
    first, second, third, failed = (board.against_best(row) for row in board.rows)
    assert (first, failed) == ("", "")
    assert not second.endswith("*"), "one above, one below"
    assert third.startswith("-0.100"), third
    assert third.endswith("*"), "always about a tenth below, though seeds differ by as much"


def test_it_is_written_as_csv_and_markdown(sweep: Path) -> None:
    result = CliRunner().invoke(app, ["leaderboard", str(sweep)])
    assert result.exit_code == 0, result.output
    with (sweep / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "1", "3", ""], "0.85 is 0.85, over any seeds"
    assert rows[0]["runs"] == "3"
    assert rows[0]["val_accuracy"] == "0.850"
    assert rows[0]["seconds"] == "3.0"
    assert rows[0]["features_computed"] == "15"
    assert rows[-1]["status"] == "1 failed: InputError: no | weights"
    text = (sweep / "leaderboard.md").read_text()
    assert text.count("\n| ") == 5
    assert "- head=d seed=0: failed: InputError: no | weights" in text


def test_folds_are_repetitions(tmp_path: Path) -> None:
    for fold in range(3):
        draw_run(tmp_path / str(fold), ["head=a", f"data.fold={fold}", "data.folds=3"], val_accuracy=0.8 + fold / 10)
    (row,) = Leaderboard.of(collect(tmp_path)).rows
    assert len(row.entries) == 3


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs below this folder"):
        collect(tmp_path)
    (tmp_path / "file").touch()
    for name, words in (("file", "is a file"), ("none", "does not exist")):
        with pytest.raises(InputError, match=f"{name}: {words}; give a folder with runs"):
            collect(tmp_path / name)


def test_a_long_reason_is_cut_with_an_ellipsis(tmp_path: Path) -> None:
    draw_run(tmp_path / "0", ["head=a"], state="failed", reason="/a/long/path" * 20)
    (entry,) = collect(tmp_path)
    assert entry.label.endswith("...")
    assert len(entry.label) == 80


def test_random_weights_are_ranked_apart_and_marked(tmp_path: Path) -> None:
    draw_run(tmp_path / "a", ["backbone=a"], val_accuracy=0.8)
    draw_run(tmp_path / "b", ["backbone=b"], val_accuracy=0.9)
    draw_run(tmp_path / "c", ["backbone=c"], val_accuracy=1.0, random_weights=True)
    draw_run(tmp_path / "d", ["backbone=d"], "skipped", "no weights: d.h5 is needed and not there: offline")
    header, lines = Leaderboard.of(collect(tmp_path)).table()
    states = [(line[0], line[1], line[header.index("status")]) for line in lines]
    assert states == [
        ("1", "b", "1 done"),
        ("2", "a", "1 done"),
        ("1", "c", "1 done, random weights"),
        ("", "d", "1 skipped: no weights"),
    ]


def test_fresh_makes_no_column(tmp_path: Path) -> None:
    draw_run(tmp_path / "a", ["head=a"], val_accuracy=0.8)
    draw_run(tmp_path / "b", ["head=b", "fresh=true"], val_accuracy=0.9)
    assert Leaderboard.of(collect(tmp_path)).keys == ["head"]


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_a_narrow_terminal_loses_no_column(sweep: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, soft_wrap=True)
    monkeypatch.setattr(console, "out", screen)
    header, lines = Leaderboard.of(collect(sweep)).table()
    show_leaderboard("val_accuracy", header, [[*line[:-1], "long " * 20] for line in lines], [], "folder")
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert {name for name in header if name not in shown} == set(ONLY_IN_FILES)
    assert max(map(len, shown.splitlines())) <= width
    first = next(line.split() for line in shown.splitlines() if "rank" in line)
    assert first[:2] == ["rank", "head"]
    assert "val_accuracy" in first


def test_equal_values_share_a_rank_and_the_earliest_job_is_first(tmp_path: Path) -> None:
    values = {"d": (0.9, 3), "b": (0.9, 1), "c": (0.95, 2), "a": (0.9, 7), "e": (0.8, 0)}
    for name, (accuracy, number) in values.items():
        draw_run(tmp_path / name, [f"head={name}"], val_accuracy=accuracy)
        (tmp_path / name / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{num: {number}}}}}")
    _, lines = Leaderboard.of(collect(tmp_path)).table()
    assert [(line[0], line[1]) for line in lines] == [("1", "c"), ("2", "b"), ("2", "d"), ("2", "a"), ("5", "e")]


def test_each_data_set_has_a_table_and_ranks_of_its_own(tmp_path: Path) -> None:
    for number, (root, dataset, accuracy) in enumerate(
        [
            ("/a", "x", 0.5),
            ("/b", "y", 0.9),
            ("/a", "x", 0.7),
            ("/copy of a", "x", 0.6),
            ("/a", "z", 0.4),
            ("/b", "", 0),
        ]
    ):
        run = tmp_path / str(number)
        draw_run(run, [f"data.root={root}", f"head={number}"], val_accuracy=accuracy, dataset=dataset)  # type: ignore[arg-type]
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"root": root}}))
    result = CliRunner().invoke(app, ["leaderboard", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = [(row["data"], row["rank"], row["head"], Path(row["directory"]).name) for row in csv.DictReader(file)]
    assert rows == [
        ("/a (x)", "1", "2", "2"), ("/a (x)", "2", "3", "3"), ("/a (x)", "3", "0", "0"), ("/b", "1", "1", "1"),
        ("/b", "2", "5", "5"), ("/a (z)", "1", "4", "4"),
    ]  # fmt: skip
    assert (tmp_path / "leaderboard.md").read_text().count("| rank |") == 3


def test_a_default_shows_its_value(tmp_path: Path) -> None:
    config = {"seed": 0, "optimizer": {"lr": 0.001}, "choices": {"head": "linear"}, "features": {"views": None}}
    for number, overrides in enumerate([[], ["head=mlp", "optimizer.lr=1e-2", "features.views=4"], ["head=linear"]]):
        draw_run(tmp_path / str(number), overrides, val_accuracy=0.9 - number / 10)
        changed = (
            {"optimizer": {"lr": 0.01}, "choices": {"head": "mlp"}, "features": {"views": 4}} if number == 1 else {}
        )
        (tmp_path / str(number) / "config.yaml").write_text(yaml.safe_dump({**config, **changed}))
    board = Leaderboard.of(collect(tmp_path))
    assert board.keys == ["head", "optimizer.lr", "features.views"]
    assert [row.values for row in board.rows] == [("mlp", "0.01", "4"), ("linear", "0.001", "null")]


def test_equal_runs_have_the_interval_of_their_images(tmp_path: Path) -> None:
    for name, accuracies, folds in (
        ("a", [0.95] * 3, 1),
        ("b", [1.0] * 3, 1),
        ("c", [0.9, 0.95, 1], 1),
        ("d", [0.95] * 5, 5),
    ):
        for seed, accuracy in enumerate(accuracies):
            overrides = [f"head={name}", f"data.fold={seed}" if folds > 1 else f"seed={seed}"]
            draw_run(tmp_path / f"{name}{seed}", overrides, val_accuracy=accuracy, val_loss=0.3, num_val=20)
    rows = {row.values[0]: row for row in Leaderboard.of(collect(tmp_path)).rows}
    wilson = {n: binomtest(round(0.95 * n), n).proportion_ci(method="wilson") for n in (20, 100)}
    assert rows["a"].interval("val_accuracy") == pytest.approx(tuple(wilson[20]), abs=1e-6)
    assert rows["d"].interval("val_accuracy") == pytest.approx(tuple(wilson[100]), abs=1e-6), "folds share no image"
    assert rows["b"].interval("val_accuracy") == pytest.approx((0.8389, 1), abs=1e-4)
    low, high = rows["c"].interval("val_accuracy") or (0, 0)
    half = t.ppf(0.975, 2) * 0.05 / np.sqrt(3)
    assert 0.95 - low == pytest.approx(np.hypot(half, 0.95 - wilson[20].low))
    assert high == 1
    assert rows["a"].interval("val_loss") is None, "of images nothing is known, and seeds change nothing"


def test_a_star_is_more_than_the_noise_of_the_images(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.95), ("b", 0.9), ("c", 0.5)):
        for seed in range(3):
            draw_run(tmp_path / f"{name}{seed}", [f"head={name}", f"seed={seed}"], val_accuracy=accuracy, num_val=40)
    board = Leaderboard.of(collect(tmp_path))
    assert [board.against_best(row).endswith("*") for row in board.rows] == [False, False, True]
