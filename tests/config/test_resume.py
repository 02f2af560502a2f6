"""A resumed run equals the uninterrupted one, weights, metrics and history, bit for bit."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import pytest

from tests.conftest import ROOT, draw_noise
from tl_research import InputError, Run, compose
from tl_research.runs.checkpoint import CheckpointFolder, CheckpointState
from tl_research.training import run_checkpoints

SHORT = ["transfer.backbone.epochs=4", "transfer.backbone.learning_rate=1e-3", "deterministic=true"]
TIMES = ("seconds", "data_wait")


def options(data: Path, *more: str) -> list[str]:
    return ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={data}", *more]


def weights(run: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(run / "model.keras") as file, h5py.File(io.BytesIO(file.read("model.weights.h5"))) as h5:
        values: dict[str, bytes] = {}
        h5.visititems(lambda name, x: values.update({name: x[()].tobytes()}) if isinstance(x, h5py.Dataset) else None)
    return values


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def numbers(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if not k.startswith(("seconds_", "features_")) and k != "resumed_at_epoch"}


def assert_same(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    assert numbers(one) == numbers(other)
    assert weights(one) == weights(other)
    assert (one / "predictions.csv").read_text() == (other / "predictions.csv").read_text()


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, most: float = math.inf) -> Iterator[list[CheckpointState]]:
    """Collect the checkpoints written inside, one after each epoch however short, and kill the run after `most`."""
    written: list[CheckpointState] = []
    write = CheckpointFolder.write

    def noted(self: CheckpointFolder, state: CheckpointState) -> None:
        write(self, state)
        written.append(state)
        if len(written) == most:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFolder, "write", noted)
        patched.setattr(run_checkpoints, "MOST_WRITING", math.inf)
        yield written


def killed_after(checkpoints: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Run `act` until so many checkpoints have been written."""
    with counted(monkeypatch, checkpoints), pytest.raises(Killed):
        act()


def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = options(colours, "transfer=finetune", *SHORT, "trainer.ema=0.9", "trainer.batch_size=8")
    whole = compose(overrides).run(tmp_path / "whole")
    assert whole.metrics["resumed_at_epoch"] is None
    assert not (whole.directory / "checkpoints").exists()
    killed_after(3, monkeypatch, lambda: compose(overrides).run(tmp_path / "cut"))
    resumed = compose([f"resume={tmp_path / 'cut'}"]).run()
    assert resumed.metrics["resumed_at_epoch"] == 3
    assert_same(whole.directory, resumed.directory)
    counts = resumed.metrics["features_computed"], resumed.metrics["features_hit"]
    assert counts == (0, 36), "the first process found them in the store, the second needed none"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["knn", "linear"])
def test_a_head_fitted_on_train_and_val_is_restored(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    overrides = options(colours, f"head={head}", "deterministic=true")
    whole = compose(overrides).run(tmp_path / "whole")

    with monkeypatch.context() as patched:
        patched.setattr("tl_research.experiment.flow.evaluate_run", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            compose(overrides).run(tmp_path / "cut")
    compose([f"resume={tmp_path / 'cut'}"]).run()
    assert_same(whole.directory, tmp_path / "cut")


@pytest.mark.slow
def test_the_time_limit_includes_earlier_processes(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = options(colours, "transfer=finetune", *SHORT, "trainer.time_limit=10")
    killed_after(2, monkeypatch, lambda: compose(overrides).run(tmp_path / "cut"))
    read = CheckpointFolder.read

    def older(self: CheckpointFolder) -> CheckpointState | None:
        state = read(self)
        assert state is not None
        assert 0 < state.facts["run"]["used"] < 300
        state.facts["run"]["used"] += 600.0
        return state

    monkeypatch.setattr(CheckpointFolder, "read", older)
    resumed = compose([f"resume={tmp_path / 'cut'}"]).run()
    assert len(history(resumed.directory)) == 3, "the head's row, an epoch, and the current one"


def test_two_runs_cannot_be_resumed_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^resume=b: resume=a is asked for, too; give one run$"):
        compose(["resume=a", "resume=b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("transfer=gradual", *(f"transfer.block{i}.epochs=2" for i in (1, 2, 3)), "deterministic=true"),
        ("transfer=finetune_all", *SHORT, "bn=train", "transfer.backbone.schedule=one_cycle", "trainer.ema=0.99"),
        (
            "transfer=finetune_all",
            *SHORT,
            "transfer.backbone.schedule=plateau",
            "data/augment=strong",
            "optimizer=adam",
            "transfer.head.epochs=2",
        ),
        ("transfer=finetune_all", *SHORT, "head=mlp", "optimizer=sgd", "transfer.head.epochs=5", "bn=adapt"),
        ("transfer=finetune", *SHORT, "head=prototype", "trainer.accumulate=2", "callbacks.early_stopping.patience=1"),
        ("transfer=discriminative", *SHORT, "optimizer=adamw", "trainer.label_smoothing=0.1", "trainer.clip_norm=1"),
        ("transfer=finetune_all", *SHORT, "callbacks=none", "trainer.precision=mixed_float16"),
    ],
    ids=["gradual", "one_cycle", "plateau", "mlp", "prototype", "discriminative", "float16"],
)
def test_a_run_resumes_equally_from_its_checkpoints(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    overrides = options(colours, *more, "trainer.batch_size=8")
    with counted(monkeypatch) as written:
        whole = compose(overrides).run(tmp_path / "whole")
    for count in sorted({1, 2, len(written) // 2, len(written) - 1, len(written)}):
        cut = tmp_path / f"cut{count}"
        killed_after(count, monkeypatch, lambda cut=cut: compose(overrides).run(cut))  # type: ignore[misc]
        compose([f"resume={cut}"]).run()
        assert_same(whole.directory, cut)


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    noise = draw_noise(tmp_path / "photos", ("train", "test"), 12)
    epochs = [f"transfer.block{i}.epochs=6" for i in (1, 2, 3)]
    overrides = options(noise, "transfer=gradual", *epochs, "deterministic=true", "trainer.ema=0.9",
                        "trainer.batch_size=4", "callbacks.early_stopping.patience=4",
                        "trainer.checkpoint_minutes=0.0005", "features.max_map_gb=0")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert (
        subprocess.run(command(*overrides, f"hydra.run.dir={whole}"), capture_output=True, check=False).returncode == 0
    )
    chance, next_command, kills = random.Random(0), command(*overrides, f"hydra.run.dir={cut}"), 0
    while kills < 10:
        with subprocess.Popen(next_command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            before = newest(cut)
            wait(lambda: newest(cut) != before or process.poll() is not None)  # noqa: B023
            time.sleep(chance.random() * 0.4)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        kills += 1
        next_command = command(f"resume={cut}")
    result = subprocess.run(command(f"resume={cut}"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert kills >= 5, "the run was over too soon to be killed"
    assert_same(whole, cut)
    assert Run.open(cut).status["state"] == "done"
    assert "done before" in subprocess.run(command(f"resume={cut}"), capture_output=True, text=True, check=True).stdout


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *overrides]


def newest(run: Path) -> str:
    return max((path.name for path in run.glob("checkpoints/*.npz")), default="")


def wait(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


# Refusals


@pytest.fixture
def unfinished(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    overrides = options(colours, "optimizer=adam", "transfer.head.epochs=3")
    killed_after(1, monkeypatch, lambda: compose(overrides).run(tmp_path / "cut"))
    return tmp_path / "cut"


def test_resume_takes_no_other_overrides(unfinished: Path) -> None:
    with pytest.raises(InputError, match=r"^seed=3: resume=.*cut takes all from the run; leave it out"):
        compose([f"resume={unfinished}", "seed=3"])
    with pytest.raises(InputError, match="not a run directory"):
        compose([f"resume={unfinished / 'nowhere'}"])
    (unfinished / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(InputError, match=r"the run has a damaged config\.yaml"):
        compose([f"resume={unfinished}"])


def test_foreign_code_is_imported_only_if_the_command_names_it(unfinished: Path) -> None:
    path = unfinished / "config.yaml"
    path.write_text(path.read_text().replace("tl_research.targets.Linear", "os.system"))
    with pytest.raises(InputError, match=r"made with code of yours.*add head\._target_=os\.system"):
        compose([f"resume={unfinished}"])


def test_features_are_counted_over_all_processes(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(1, monkeypatch, lambda: compose([f"resume={unfinished}"]).run())
    done = compose([f"resume={unfinished}"]).run()
    assert done.metrics["features_computed"] == 36  # by the first
    assert done.metrics["features_hit"] == 72  # by the two that went on, in the store


def content(run: Path) -> dict[str, bytes]:
    """Read all files of a run but the lock."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def edit_config(run: Path, *_: object) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("resize: squash", "resize: crop"))


def replace_image(_: Path, data: Path, __: object) -> None:
    shutil.copy(data / "train" / "red" / "000.jpg", data / "train" / "red" / "001.jpg")


def change_code(_: Path, __: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_research.runs.identity.CODE_VERSION", "another")


@pytest.mark.parametrize("until", [pytest.param("cut", marks=pytest.mark.slow), "done"])
@pytest.mark.parametrize(
    ("change", "what"),
    [(edit_config, "config"), (replace_image, "images"), (change_code, "code version")],
    ids=["config", "images", "code"],
)
def test_a_changed_run_is_refused_and_stays_as_it_was(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, until: str, change: Any, what: str
) -> None:
    own, run = shutil.copytree(colours, tmp_path / "own"), tmp_path / "run"
    overrides = options(own, "optimizer=adam", "transfer.head.epochs=3")
    if until == "cut":
        killed_after(1, monkeypatch, lambda: compose(overrides).run(run))
    else:
        compose(overrides).run(run)
    change(run, own, monkeypatch)
    before = content(run)
    with pytest.raises(InputError) as refused:
        compose([f"resume={run}"]).run()
    assert str(refused.value) == f"resume={run}: changed since the run began: {what}; add fresh=true to begin it anew"
    assert content(run) == before
    anew = compose([f"resume={run}", "fresh=true"]).run()
    assert anew.status["state"] == "done"
    assert anew.metrics["resumed_at_epoch"] is None
    assert ("resize: crop" in (run / "config.yaml").read_text()) == (what == "config")
    assert compose([f"resume={run}"]).run().kept


def test_all_changed_parts_are_named(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.weights.h5"
    backbone = compose(["backbone=tiny", "backbone.image_size=32"]).backbone.network()
    backbone.save_weights(path)
    overrides = options(colours, "optimizer=adam", "transfer.head.epochs=3", f"backbone.weights={path}")
    killed_after(1, monkeypatch, lambda: compose(overrides).run(tmp_path / "run"))
    backbone.set_weights([value + 1 for value in backbone.get_weights()])
    backbone.save_weights(path)
    change_code(tmp_path / "run", colours, monkeypatch)
    before = content(tmp_path / "run")
    with pytest.raises(InputError, match="began: weights and code version; add"):
        compose([f"resume={tmp_path / 'run'}"]).run()
    assert content(tmp_path / "run") == before


def test_missing_images_leave_a_run_as_it_was(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, run = shutil.copytree(colours, tmp_path / "own"), tmp_path / "run"
    killed_after(1, monkeypatch, lambda: compose(options(own, *SHORT, "transfer=finetune")).run(run))
    own.rename(tmp_path / "moved")
    before = content(run)
    with pytest.raises(InputError, match="own"):
        compose([f"resume={run}"]).run()
    assert content(run) == before


def test_edited_keys_are_named_if_hydra_recorded_them(unfinished: Path, colours: Path) -> None:
    (unfinished / ".hydra").mkdir()
    noted = (unfinished / "config.yaml").read_text().replace(str(colours), "${oc.env:PHOTOS}")
    (unfinished / ".hydra" / "config.yaml").write_text(noted)
    edit_config(unfinished)
    with pytest.raises(InputError, match=r"began: config \(data\.resize\); add fresh=true"):
        compose([f"resume={unfinished}"]).run()


def test_other_package_versions_give_a_warning(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tl_research.system.versions import versions

    monkeypatch.setattr("tl_research.runs.identity.versions", lambda: versions() | {"version_keras": "99"})
    resumed = compose([f"resume={unfinished}"]).run()
    assert resumed.metrics["resumed_at_epoch"] == 1
    assert "package versions have changed since: keras" in caplog.text
    assert resumed.status["identity"]["packages"]["version_keras"] == "99"


def test_the_command_refuses_in_one_line_and_writes_no_log(unfinished: Path) -> None:
    edit_config(unfinished)
    before = content(unfinished)
    refused = subprocess.run(command(f"resume={unfinished}"), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"resume={unfinished}: changed since the run began: config")
    assert refused.stderr.count("\n") == 1
    assert content(unfinished) == before
