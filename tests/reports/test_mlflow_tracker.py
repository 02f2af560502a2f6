"""The MLflow callback: what it sends, and that its failures are its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.experiment.test_experiment import run
from tl_research import compose
from tl_research.errors import InputError
from tl_research.reports.mlflow_tracker import MLflow
from tl_research.runs.reader import read_rows
from tl_research.training.callbacks import Results

EPOCHS = ["callbacks=mlflow", "callbacks.tensorboard=null", "optimizer=adam", "transfer.head.epochs=2"]


class Store:
    """What a client of MLflow's was told."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails_at = fails_at

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            if name == self.fails_at:
                raise ConnectionError("no\nserver")
            return None if name == "get_experiment_by_name" else SimpleNamespace(info=SimpleNamespace(run_id="7"))

        return call

    def sent(self, name: str) -> list[tuple[Any, ...]]:
        return [(*args[1:], *options.values()) for called, args, options in self.calls if called == name]

    def metrics(self) -> list[tuple[str, int]]:
        return [(m.key, m.step) for (batch,) in self.sent("log_batch") for m in batch if hasattr(m, "step")]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A stand-in for MLflow."""
    store, module, entities = Store(), ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = lambda tracking_uri: store  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(  # type: ignore[attr-defined]
        key=key, value=value, step=step
    )
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    for one in (module, entities):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    for name in ("DISABLE_TELEMETRY", "HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", "1")
    return store


def test_a_run_comes_to_the_tracker(tmp_path: Path, colours: Path, store: Store) -> None:
    done = run(tmp_path / "run", colours, *EPOCHS, "callbacks.mlflow.model=true")
    metrics = store.metrics()
    assert [step for key, step in metrics if key == "val_loss"] == [0, 1, 2]
    assert ("test_accuracy", 2) in metrics
    parameters = {p.key: p.value for (batch,) in store.sent("log_batch") for p in batch if not hasattr(p, "step")}
    assert (parameters["optimizer"], parameters["transfer.head.epochs"]) == ("adam", "2")
    names = {Path(path).name for (path,) in store.sent("log_artifact")}
    assert {"metrics.json", "predictions.csv", "model_card.md", "model.keras"} <= names
    assert "mistakes.json" not in names, "it may hold pictures"
    assert store.sent("set_terminated") == [("FINISHED",)]
    assert json.loads((done.directory / "mlflow.json").read_text())["run_id"] == "7"


def recorded(folder: Path) -> None:
    """Send what a run with one epoch sends, without the run."""
    recipe, none = MLflow(), np.empty(0)
    for name in ("metrics.json", "history.csv"):
        (folder / name).write_text("epoch\n0\n")
    recipe.build(folder).on_epoch_end(0, {"loss": 0.1})
    recipe.finish(folder, Results({"val_loss": 0.1}, {}, [], none, none, []))
    recipe.close(folder, "done")


@pytest.mark.parametrize("fails_at", ["create_run", "log_batch", "log_artifact", "set_terminated"])
def test_a_tracker_that_fails_warns_once(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture, fails_at: str
) -> None:
    store.fails_at = fails_at
    recorded(tmp_path)
    assert caplog.messages == ["callback MLflow: not shown, the run goes on (ConnectionError: no server)"]
    assert [name for name, *_ in store.calls].count(fails_at) == 1, "nothing is sent after a failure"


@pytest.mark.parametrize(("error", "end"), [(InputError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_ends_badly_does_so_there(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException, end: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    experiment = compose(["backbone=tiny", "callbacks=mlflow"])
    monkeypatch.setattr(type(experiment), "preflight", lambda self: self.callbacks["mlflow"].build(tmp_path / "run"))
    monkeypatch.setattr("tl_research.data.sources.HotDogDemo.load", fail)
    with pytest.raises(type(error)):
        experiment.run(tmp_path / "run")
    assert store.sent("set_terminated") == [(end,)]


def test_a_resumed_run_goes_on_in_its_own(tmp_path: Path, store: Store) -> None:
    recipe = MLflow()
    recipe.build(tmp_path)
    recipe.close(tmp_path, "interrupted")
    recipe.build(tmp_path)
    assert [name for name, *_ in store.calls].count("create_run") == 1
    assert store.sent("set_terminated") + store.sent("update_run") == [("KILLED",), ("RUNNING",)]


def test_a_missing_package_is_named(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("tl_research.reports.mlflow_tracker.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "tl_research\[mlflow\]"'):
        run(tmp_path / "run", colours, "callbacks=mlflow")


READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(found,) = client.search_runs([client.get_experiment_by_name("tl_research").experiment_id])
history = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "val_loss")]
artifacts = [one.path for one in client.list_artifacts(found.info.run_id)]
print(json.dumps([found.info.status, found.data.params, found.data.metrics, history, artifacts]))
"""


@pytest.mark.slow
def test_a_real_store_holds_the_run(tmp_path: Path, colours: Path) -> None:
    """In an environment of its own, above this one: MLflow without its pages, and what its local store needs."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    inherited = [str(ROOT), *(path for path in sys.path if path.endswith("-packages"))]
    (site / "inherited.pth").write_text("\n".join(inherited) + "\n")
    pip = [python, "-m", "pip", "install", "-q", "mlflow-skinny>=3.1", "sqlalchemy", "alembic"]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot install mlflow-skinny: {installed.stderr.strip().splitlines()[-1:]}")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [python, "-m", "tl_research", "train", "backbone=tiny", "data=folder", f"data.root={colours}"]
    command += [*EPOCHS, f"callbacks.mlflow.uri={uri}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MLflow: not shown" not in done.stderr
    read = subprocess.run([python, "-c", READ, uri], cwd=tmp_path, capture_output=True, text=True, check=True)
    status, parameters, metrics, history, artifacts = json.loads(read.stdout.splitlines()[-1])
    known = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (status, parameters["optimizer"], metrics["test_accuracy"]) == ("FINISHED", "adam", known["test_accuracy"])
    epochs = [
        (int(row["epoch"]), pytest.approx(float(row["val_loss"])))
        for row in read_rows(tmp_path / "run" / "history.csv")
    ]
    assert sorted(map(tuple, history)) == [*epochs, (2, pytest.approx(known["val_loss"]))]
    assert {"metrics.json", "predictions.csv", "model_card.md"} <= set(artifacts)
