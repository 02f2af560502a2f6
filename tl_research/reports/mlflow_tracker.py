"""The MLflow callback: a run's parameters, metrics and artifacts in a store of MLflow's."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tl_research.backend.workers import worker_rank
from tl_research.errors import InputError
from tl_research.evaluation.evaluate import hyperparameters
from tl_research.recipe import recipe
from tl_research.runs.reader import RunReader, read_rows
from tl_research.system.console import only_warning
from tl_research.system.files import write_atomically
from tl_research.training.callbacks import Callback, Results

if TYPE_CHECKING:
    import keras

Send = Callable[[Any, str], object]
"""What to do with a client of MLflow's and the number of the run there."""

NOTE = "mlflow.json"
"""The file that says which run of MLflow's a run is, so that a resumed one goes on in it."""

ARTIFACTS = (
    *("metrics.json", "predictions.csv", "validation.csv", "calibration.json", "history.csv"),
    *("classes.json", "weights.json", "config.yaml", "model_card.md"),
)
ENDS = {"done": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}
MOST_PARAMETERS = 100
"""Of one request."""
LONGEST = 500
"""Letters of a parameter's value, which older servers of MLflow's take."""


@recipe
class MLflow(Callback):
    """Record a run in MLflow: its configuration, metrics of each epoch and at the end, artifacts, and how it ended.
    `uri` is where MLflow keeps runs (null: as MLFLOW_TRACKING_URI or MLflow says), and `experiment` is made there if
    need be. With `model`, model.keras is an artifact, too."""

    uri: str | None = None
    experiment: str = "tl_research"
    model: bool = False

    @override
    def preflight(self) -> None:
        if find_spec("mlflow") is None:
            raise InputError('callbacks.mlflow needs MLflow, which is not installed: pip install "tl_research[mlflow]"')

    @override
    def build(self, directory: Path) -> keras.callbacks.Callback:
        import keras

        session = self._session(directory)

        class Log(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                session.send(lambda client, run: client.log_batch(run, metrics=_metrics(logs or {}, epoch)))

        session.send(lambda client, run: None)  # a run that fails in its first epoch is there, too
        return Log()

    @override
    def finish(self, directory: Path, results: Results) -> None:
        """Add the final metrics, behind those of the epochs, and the artifacts."""
        session, step = self._session(directory), sum(1 for _ in read_rows(directory / "history.csv"))
        final = {key: value for key, value in results.metrics.items() if not key.startswith("version_")}
        session.send(lambda client, run: client.log_batch(run, metrics=_metrics(final, step)))
        for name in (*ARTIFACTS, *(("model.keras",) if self.model else ())):
            if (path := directory / name).is_file():
                session.send(lambda client, run: client.log_artifact(run, str(path)))

    @override
    def close(self, directory: Path, state: str) -> None:
        """Record how the run ended, if it has come to MLflow."""
        session = self._sessions.pop(directory, None)
        if session:
            session.send(lambda client, run: client.set_terminated(run, ENDS.get(state, "FAILED")))

    @cached_property
    def _sessions(self) -> dict[Path, _Session]:
        return {}

    def _session(self, directory: Path) -> _Session:
        return self._sessions.setdefault(directory, _Session(self, directory))


class _Session:
    """A run's connection to MLflow. The first error ends it, with one warning: the run goes on."""

    def __init__(self, recipe: MLflow, directory: Path) -> None:
        self._recipe, self._directory = recipe, directory
        self._opened: tuple[Any, str] | None = None
        self._is_over = _is_secondary(directory)

    def send(self, send: Send) -> None:
        """Send something, if nothing has failed before."""
        if self._is_over:
            return
        with only_warning("callback MLflow"):
            try:
                self._opened = self._opened or _open(self._recipe, self._directory)
                send(*self._opened)
            except Exception:
                self._is_over = True
                raise


def _is_secondary(directory: Path) -> bool:
    """Tell whether this process is a worker beside the first, which records nothing."""
    trainer = RunReader(directory).config.get("trainer") or {}
    return trainer.get("distribution") == "multi_worker" and worker_rank() > 0


def _open(recipe: MLflow, directory: Path) -> tuple[Any, str]:
    """Begin a run of MLflow's with the run's parameters, or continue the one that it has begun before."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # or a server that is gone holds up every run
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of each try
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient(tracking_uri=recipe.uri)
    note = directory / NOTE
    if note.is_file():
        number = str(json.loads(note.read_text())["run_id"])
        client.update_run(number, status="RUNNING")
        return client, number
    name = "/".join(directory.parts[-2:])
    number = str(client.create_run(_experiment(client, recipe.experiment), run_name=name).info.run_id)
    write_atomically(note, json.dumps({"run_id": number, "uri": recipe.uri}) + "\n")
    run = RunReader(directory)
    parameters = [
        Param(_key(key), str(value)[:LONGEST]) for key, value in hyperparameters(run.config, run.overrides).items()
    ]
    for start in range(0, len(parameters), MOST_PARAMETERS):
        client.log_batch(number, params=parameters[start : start + MOST_PARAMETERS])
    return client, number


def _experiment(client: Any, name: str) -> Any:
    """Find or create an experiment; another job may create it at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(Exception):
            return client.create_experiment(name)
        found = client.get_experiment_by_name(name)
    return found.experiment_id


def _metrics(values: Mapping[str, Any], step: int) -> list[Any]:
    """Make MLflow's metrics of finite numbers; others are left out."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return [Metric(_key(key), float(value), now, step) for key, value in numbers.items() if math.isfinite(value)]


def _key(name: str) -> str:
    """Make a name that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)
