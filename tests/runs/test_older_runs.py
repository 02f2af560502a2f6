"""The store, file index and runs of commit aeace94 remain readable, and its unfinished runs resumable. They are in
`fixtures/aeace94`, with `@IMAGES@` and `@STORE@` in place of folders."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest

from tests.config.test_resume import content
from tests.conftest import ROOT
from tl_research import InputError, Run, compose
from tl_research.data import decode, file_index
from tl_research.data.augment.augment import Augment
from tl_research.data.file_index import FileIndex
from tl_research.data.inspection import inspect_all
from tl_research.evaluation.answers import Answers
from tl_research.evaluation.predict import evaluate_on, predict_logits
from tl_research.features.engines import describe_engine
from tl_research.runs.identity import Identity
from tl_research.training.stage_runner import StageRunner

FIXTURE = ROOT / "tests" / "fixtures" / "aeace94"
OLDER = "made by an older version; its images and weights cannot be compared"

# What aeace94 printed for these runs.
EVALUATED = {"loss": 0.5081826747720407, "accuracy": 0.875, "macro_f1": 0.873015873015873, "auroc": 0.875}
P_BLUE = [0.5114854, 0.56303702, 0.68654981, 0.72639898, 0.57910488, 0.42807468, 0.33927977, 0.24899253]
RESUMED = {  # as in its uninterrupted run
    "resumed_at_epoch": 3,
    "num_train": 12,
    "num_val": 4,
    "num_test": 8,
    "num_trainable": 8274,
    "num_parameters": 8842,
    "l2": 3.1622776601683795,
    "best_stage": "backbone",
    "best_epoch": 4,
    "val_loss": 0.4448057272637874,
    "val_accuracy": 0.75,
    "val_macro_f1": 0.7333333333333334,
    "val_auroc": 1.0,
    "test_loss": 0.523542972301448,
    "test_accuracy": 0.875,
    "test_macro_f1": 0.873015873015873,
    "test_auroc": 0.875,
}
LOSSES = [0.51861049, 0.48098317, 0.45768132, 0.44674486, 0.4447795]


class Older:
    """A copy of the fixture, its placeholders filled in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.finished, self.unfinished = root / "images", root / "finished", root / "unfinished"


@pytest.fixture
def older(tmp_path: Path) -> Older:
    root = shutil.copytree(FIXTURE, tmp_path / "aeace94")
    for path in root.rglob("*"):
        if path.suffix in (".json", ".yaml", ".csv"):
            text = path.read_text()
            path.write_text(text.replace("@IMAGES@", str(root / "images")).replace("@STORE@", str(root / "store")))
    return Older(root)


def options(older: Older, *more: str) -> list[str]:
    return [
        *("backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={older.images}"),
        *("deterministic=true", "callbacks.tensorboard=null", f"features.store={older.root / 'store'}", *more),
    ]


# The store, the file index and augmented images


def test_stored_rows_are_found(older: Older, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the key, machine and packages are set to those of then; our own part must be equal by itself."""
    (about_file,) = (older.root / "store").glob("*/about.json")
    about = json.loads(about_file.read_text())["about"]
    environment = ["openvino", "tensorflow", "keras", "processor"]
    if keras.__version__ != about["keras"]:
        environment.append("network")  # another version of Keras may describe layers differently
    decoder = about["decoder"] | {"code": decode.version()["code"]}

    def engine(name: Any, threads: int) -> dict[str, Any]:
        return describe_engine(name, threads) | {key: about[key] for key in environment}

    monkeypatch.setattr("tl_research.features.table.describe_engine", engine)
    monkeypatch.setattr(decode, "version", lambda: decoder)
    run = compose(options(older)).extract(tmp_path / "run")
    assert (run.metrics["features_computed"], run.metrics["features_hit"]) == (0, 24)
    assert len(list((older.root / "store").glob("*/about.json"))) == 1


def test_checked_files_are_not_read_again(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file of aeace94, only folder, inodes, times and package versions are replaced."""
    folder, index = older.images / "test" / "red", older.root / "index"
    content = json.loads((older.root / "file_index.json").read_text().partition("\n")[2])
    assert content["folder"] == str(folder)
    versions = {key: value for key, value in content["version"].items() if key not in ("code", "index")}
    code = decode.version()["code"]
    monkeypatch.setattr(decode, "version", lambda: {"code": code, **versions})
    for name, entry in content["files"].items():
        stat = (folder / name).stat()
        entry[0] = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    text = json.dumps(content)
    index.mkdir()
    path = index / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**9))
    monkeypatch.setattr("tl_research.data.inspection.read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    paths = sorted(folder.iterdir())
    digests = [image.digest for image in inspect_all(paths, FileIndex(index))]
    assert digests == [hashlib.sha256(path.read_bytes()).digest() for path in paths]


FEW = Augment(flip=True, crop=0.6, brightness=0.2)
MANY = Augment(rand_augment=2, erase=0.5, hue=0.1, rotate=20, mixup=0.2, seed=7)


@pytest.mark.parametrize(
    ("recipe", "draw_key", "digest"),
    [
        (Augment(), 0, "67efcbe5f1b33972c8a81c254237873d6dafe04c15d74d790ba0b6cfbc5da918"),
        (FEW, [3, 5], "e70534f22c68a2fdbfec578545ae80bd0d00910ab0b1d93700b4cd619dbe3ac5"),
        (MANY, 1, "4af0ab12fa867e7eaeef1979a1672f1d46be9e94c1c907b6d0f21951c11315d0"),
    ],
)
def test_augmentation_draws_from_the_same_digest(recipe: Augment, draw_key: Any, digest: str) -> None:
    assert recipe.digest(b"an image", draw_key).hex() == digest


# Runs


def test_a_finished_run_predicts_and_evaluates_as_it_did(older: Older) -> None:
    paths = sorted((older.images / "test").rglob("*.png"))
    answers = Answers(Run.open(older.finished))
    rows = [*map(answers.row, paths, predict_logits(Run.open(older.finished), paths))]
    assert answers.header == ["path", "prediction", "p_blue", "p_red", "error"]
    np.testing.assert_allclose([row[2] for row in rows], P_BLUE, atol=1e-4)
    assert [row[1] for row in rows] == ["blue" if p > 0.5 else "red" for p in P_BLUE]
    metrics = evaluate_on(Run.open(older.finished), compose(options(older)).data.load())
    assert {key: metrics[key] for key in EVALUATED} == pytest.approx(EVALUATED, abs=1e-4)


def test_an_unfinished_run_resumes_with_a_warning(older: Older, caplog: pytest.LogCaptureFixture) -> None:
    run = compose([f"resume={older.unfinished}"]).run()
    assert f"{older.unfinished}: {OLDER}" in caplog.text
    assert run.status["state"] == "done"
    assert {key: run.metrics[key] for key in RESUMED} == pytest.approx(RESUMED, abs=1e-4)
    with (older.unfinished / "history.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(LOSSES, abs=1e-4)
    assert Identity.of(run.status["identity"]) is not None


def test_an_interruption_before_a_new_checkpoint_is_harmless(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(StageRunner, "run_stage", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compose([f"resume={older.unfinished}"]).run()
    assert compose([f"resume={older.unfinished}"]).run().metrics["resumed_at_epoch"] == 3


def test_a_finished_run_is_kept_with_a_warning(older: Older, caplog: pytest.LogCaptureFixture) -> None:
    before = content(older.finished)
    for run in (
        compose([f"resume={older.finished}"]).run(),
        compose(options(older)).run(older.finished, "resume"),  # as a sweep does
    ):
        assert run.kept
        assert run.metrics["test_accuracy"] == 0.875
    assert caplog.text.count(OLDER) == 2
    assert content(older.finished) == before


def test_a_changed_job_of_a_sweep_runs_again(older: Older, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert not compose(options(older, "seed=3")).run(older.finished, "resume").kept
    assert "it runs again" in caplog.text


def lose_an_image(older: Older) -> None:
    (older.images / "test" / "red" / "0.png").unlink()


def rename_a_class(older: Older) -> None:
    for split in ("train", "test"):
        (older.images / split / "red").rename(older.images / split / "crimson")


@pytest.mark.parametrize("name", ["finished", "unfinished"])
@pytest.mark.parametrize(
    ("change", "what"), [(lose_an_image, "test"), (rename_a_class, "classes")], ids=["count", "class"]
)
def test_other_images_are_noticed_by_counts_and_classes(older: Older, name: str, change: Any, what: str) -> None:
    change(older)
    before = content(older.root / name)
    with pytest.raises(InputError, match=rf"began: images \({what}\); add fresh=true"):
        compose([f"resume={older.root / name}"]).run()
    assert content(older.root / name) == before


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused_and_kept(older: Older) -> None:
    path = older.unfinished / "config.yaml"
    path.write_text(path.read_text().replace("name: tiny", "name: other").replace("image_size: 32", "image_size: 64"))
    (checkpoint,) = (older.unfinished / "checkpoints").iterdir()
    with np.load(checkpoint) as archive:
        arrays = dict(archive)
    arrays["moved/5"] = arrays["moved/5"][:, :, :4]
    np.savez(checkpoint, **arrays)  # type: ignore[arg-type]
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="its checkpoint is of another network; add fresh=true"):
        compose([f"resume={older.unfinished}"]).run()
    assert checkpoint.read_bytes() == before
    assert compose([f"resume={older.unfinished}", "fresh=true"]).run().metrics["resumed_at_epoch"] is None
