"""Whole runs in process, on tiny networks and generated images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_noise, draw_tree
from tl_research import Run, compose
from tl_research.data.datamodule import DataModule
from tl_research.reports.html_report import write_report
from tl_research.reports.leaderboard import Leaderboard, collect

FILES = {
    "calibration.json",
    "config.yaml",
    "data_check.json",
    "half_heads.json",
    "metrics.json",
    "history.csv",
    "predictions.csv",
    ".lock",
    "classes.json",
    "mistakes.json",
    "model_card.md",
    "model.keras",
    "status.json",
    "tensorboard",
    "weights.json",
}
METRICS = {"val_accuracy", "val_loss", "test_accuracy", "test_loss", "test_macro_f1", "test_auroc"}


def run(folder: Path, data: Path, *overrides: str) -> Run:
    options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={data}", *overrides]
    return compose(options).run(folder)


def numbers(run: Run) -> dict[str, float]:
    return {k: v for k, v in run.metrics.items() if not k.startswith(("seconds_", "version_", "features_"))}


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_frozen_run_writes_all_files_and_trains_the_head(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours)
    assert {p.name for p in done.directory.iterdir()} == FILES | {"validation.csv"}
    assert done.status["state"] == "done"
    assert set(done.metrics) >= METRICS
    assert done.metrics == json.loads((done.directory / "metrics.json").read_text())
    assert done.metrics["test_accuracy"] > 0.9
    backbone = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    trained = done.model().get_layer("backbone")
    for before, after in zip(backbone.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_finetuning_changes_unfrozen_blocks_but_no_statistics(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours, "transfer=finetune", "transfer.backbone.epochs=2", "callbacks=none",
               "transfer.backbone.learning_rate=1e-3")  # fmt: skip
    before = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    after = done.model().get_layer("backbone")
    changed = {
        variable.path: not np.array_equal(a, b)
        for variable, a, b in zip(before.weights, before.get_weights(), after.get_weights(), strict=True)
    }
    assert changed["block2_conv/kernel"]
    assert changed["block3_conv/kernel"]
    assert not changed["block1_conv/kernel"]
    assert not any(is_changed for path, is_changed in changed.items() if "_bn/" in path)
    stages = [row["stage"] for row in table(done.directory / "history.csv")]
    assert stages == ["head", "backbone", "backbone"]
    assert [int(row["epoch"]) for row in table(done.directory / "history.csv")] == [0, 1, 2]


def test_predictions_agree_with_saved_model_and_metrics(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours)
    rows = table(done.directory / "predictions.csv")
    assert {row["split"] for row in rows} == {"val", "test"}
    data = compose(["data=folder", f"data.root={colours}"]).data.load()
    model, names = done.model(), done.class_names()
    index = {str(path): i for i, path in enumerate(data.paths)}
    pixels = np.stack([data.pixels(index[row["path"]], 32) for row in rows]).astype(np.float32)
    logits = np.asarray(model(pixels, training=False), np.float64)
    recorded = np.log([[float(row[f"p_{name}"]) for name in names] for row in rows])
    assert np.abs((logits - logits.mean(1, keepdims=True)) - (recorded - recorded.mean(1, keepdims=True))).max() < 1e-3
    test = [row for row in rows if row["split"] == "test"]
    assert np.mean([row["label"] == row["prediction"] for row in test]) == done.metrics["test_accuracy"]
    held_out = table(done.directory / "validation.csv")
    assert np.mean([row["label"] == row["prediction"] for row in held_out]) == done.metrics["val_accuracy"]


@pytest.mark.parametrize("transfer", ["frozen", pytest.param("finetune", marks=pytest.mark.slow)])
def test_equal_seeds_give_equal_digits_after_another_run(tmp_path: Path, colours: Path, transfer: str) -> None:
    short = ["transfer.backbone.epochs=2"] if transfer == "finetune" else []
    options = [f"transfer={transfer}", *short, "deterministic=true"]
    first = run(tmp_path / "a", colours, *options)
    run(tmp_path / "b", colours, "seed=1", "optimizer=adam", "transfer.head.epochs=2")
    again = run(tmp_path / "c", colours, *options)
    assert numbers(first) == numbers(again)
    for name in ("predictions.csv", "history.csv"):
        rows = [
            [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in table(r.directory / name)]
            for r in (first, again)
        ]
        assert rows[0] == rows[1]


def test_each_image_passes_the_frozen_backbone_once(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    pixels = DataModule.pixels
    monkeypatch.setattr(DataModule, "pixels", lambda self, i, s: (decoded.append(i), pixels(self, i, s))[1])
    run(tmp_path / "run", colours, "optimizer=adam", "transfer.head.epochs=7", "callbacks=none")
    assert sorted(decoded[:36]) == list(range(36))
    assert len(decoded) == 36 + 12  # the rest are shown at the end


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that do not differ, so that training overfits."""
    return draw_noise(tmp_path_factory.mktemp("noise"), ("train", "val", "test"), 10)


@pytest.mark.slow
def test_a_stage_ends_on_its_best_epoch_stopped_early_or_not(tmp_path: Path, noise: Path) -> None:
    options = ["head=mlp", "head.dropout=0", "optimizer.learning_rate=0.03", "callbacks.early_stopping.patience=3"]
    done = run(tmp_path / "run", noise, *options, "transfer.head.epochs=60")
    rows = table(done.directory / "history.csv")
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) < 60
    assert int(np.argmin(losses)) == len(rows) - 4
    assert done.metrics["best_epoch"] == int(np.argmin(losses))
    assert done.metrics["val_loss"] == pytest.approx(min(losses), rel=1e-4)
    epochs = len(rows) - 1  # one less than early stopping's
    full = run(tmp_path / "full", noise, *options, f"transfer.head.epochs={epochs}")
    losses = [float(row["val_loss"]) for row in table(full.directory / "history.csv")]
    assert len(losses) == epochs
    assert full.metrics["val_loss"] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
def test_a_run_that_finetuning_makes_worse_ends_as_frozen(tmp_path: Path, noise: Path) -> None:
    quick = ["optimizer.folds=2", "optimizer.max_iterations=30"]
    options = ["transfer=finetune", "transfer.backbone.epochs=1", "transfer.backbone.learning_rate=1"]
    done, frozen = run(tmp_path / "run", noise, *quick, *options), run(tmp_path / "frozen", noise, *quick)
    rows = table(done.directory / "history.csv")
    assert float(rows[1]["val_loss"]) > float(rows[0]["val_loss"])
    assert done.metrics["best_stage"] == "head"
    for key in (*METRICS, "cv_accuracy", "l2"):
        assert done.metrics[key] == frozen.metrics[key], key
    for name in ("predictions.csv", "validation.csv"):
        assert (done.directory / name).read_text() == (frozen.directory / name).read_text()


@pytest.mark.slow
def test_a_head_before_a_better_stage_sees_no_validation(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours, "transfer=finetune", "transfer.backbone.epochs=1")
    assert done.metrics["best_stage"] == "backbone"
    assert not (done.directory / "validation.csv").exists()
    frozen = run(tmp_path / "frozen", colours)
    assert (frozen.directory / "validation.csv").exists()


@pytest.mark.slow
def test_scratch_starts_from_random_weights(tmp_path: Path, colours: Path) -> None:
    source = compose(["backbone=tiny", "backbone.image_size=32", "backbone.seed=9"]).backbone.build()
    source.save(tmp_path / "trained.keras")
    experiment = compose(["backbone=tiny", "transfer=scratch", f"backbone.weights={tmp_path / 'trained.keras'}"])
    assert experiment.start.weights is None
    assert compose(["backbone=tiny", f"backbone.weights={tmp_path / 'trained.keras'}"]).start.weights
    done = run(tmp_path / "run", colours, "transfer=scratch", "transfer.all.epochs=1")
    before = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.build()
    for a, b in zip(before.get_weights(), done.model().get_layer("backbone").get_weights(), strict=True):
        assert not np.array_equal(a, b)  # including batch norm statistics
    assert [row["stage"] for row in table(done.directory / "history.csv")] == ["all"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_trains_every_head(tmp_path: Path, colours: Path, head: str, optimizer: str) -> None:
    done = run(tmp_path / "run", colours, f"head={head}", f"optimizer={optimizer}", "transfer.head.epochs=8",
               "callbacks=none", "head.dropout=0")  # fmt: skip
    losses = [float(row["loss"]) for row in table(done.directory / "history.csv")]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_a_failure_is_in_the_status_with_its_reason(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the cat sat on it")

    monkeypatch.setattr("tl_research.experiment.flow.evaluate_run", broken)
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", colours)
    status = Run.open(tmp_path / "run").status
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: the cat sat on it")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_a_full_disk_leaves_no_half_written_model(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    def full(self: keras.Model, path: Path, *args: object, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", full)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path / "run", colours)
    assert {"model.keras", "metrics.json"}.isdisjoint(p.name for p in (tmp_path / "run").iterdir())
    assert not [p for p in (tmp_path / "run").iterdir() if "unfinished" in p.name]
    assert "No space left" in Run.open(tmp_path / "run").status["reason"]


def test_what_only_shows_may_fail_and_warns(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        seen.append({path.name for path in (tmp_path / "run").iterdir()})
        raise ValueError("Double\nsubscript")

    seen: list[set[str]] = []
    for name in ("reports.figures.confusion_matrix", "reports.tensorboard.scalar", "evaluation.evaluate.mistakes"):
        monkeypatch.setattr(f"tl_research.{name}", broken)
    done = run(tmp_path / "run", colours)
    assert done.status["state"] == "done"
    assert all({"model.keras", "metrics.json"} <= files for files in seen[1:])  # the first is an epoch's
    assert json.loads((done.directory / "metrics.json").read_text()) == done.metrics
    warnings = [message for message in caplog.messages if "not shown" in message]
    assert len(warnings) == 3
    assert all("ValueError: Double subscript" in message for message in warnings)


@pytest.mark.parametrize("unfreeze", [3, 99])
def test_more_blocks_than_there_are_give_a_warning(
    tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture, unfreeze: int
) -> None:
    options = ["transfer=finetune", "transfer.backbone.epochs=1", f"transfer.backbone.unfreeze={unfreeze}"]
    run(tmp_path / "run", colours, *options, "callbacks=none")
    assert any("there are 3 blocks" in message for message in caplog.messages) == (unfreeze == 99)


def test_defaults_on_the_photographs(tmp_path: Path, photos: Path) -> None:
    done = compose(["data=folder", f"data.root={photos}"]).run(tmp_path / "run")
    assert done.metrics["test_accuracy"] >= 0.92
    assert done.metrics["num_test"] == 40


@pytest.mark.slow
def test_five_seeds_on_the_photographs_reach_94_percent(tmp_path: Path, photos: Path) -> None:
    accuracies = [
        compose(["data=folder", f"data.root={photos}", f"seed={seed}"])
        .run(tmp_path / str(seed))
        .metrics["test_accuracy"]
        for seed in range(5)
    ]
    assert np.mean(accuracies) >= 0.94


def test_keys_without_effect_are_warned_of(tmp_path: Path, colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    warning = "trainer.ema changes nothing: the head is computed at once, and no stage has epochs"
    run(tmp_path / "solved", colours, "trainer.ema=0.9", "callbacks=none", "optimizer.folds=2")
    assert [record.getMessage() for record in caplog.records if "nothing" in record.getMessage()] == [warning]
    caplog.clear()
    run(tmp_path / "trained", colours, "trainer.ema=0.9", "callbacks=none", "optimizer=adam", "transfer.head.epochs=1")
    assert not [record for record in caplog.records if "nothing" in record.getMessage()]


@pytest.mark.parametrize("shares", [["data.val=0"], ["data.test=0"], ["data.val=0", "data.test=0"]], ids=" ".join)
def test_a_run_without_validation_or_test(tmp_path: Path, shares: list[str]) -> None:
    root = draw_tree(tmp_path / "photos", {"red": 9, "blue": 9})
    run = compose(["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={root}", *shares]).run(
        tmp_path / "runs" / "run"
    )
    scored = {key.partition("_")[0] for key in run.metrics if key.startswith(("val_", "test_"))}
    assert scored == {"val", "test"} - {share[5:-2] for share in shares}
    assert run.metrics.get("tested", True) == ("data.test=0" not in shares)
    monitor = "cv_accuracy" if "data.val=0" in shares else "val_accuracy"
    (board,) = Leaderboard.for_each_data_set(collect(tmp_path / "runs"))
    assert (board.monitor, board.rows[0].mean(monitor)) == (monitor, run.metrics[monitor])
    assert write_report(tmp_path / "runs").is_file()
