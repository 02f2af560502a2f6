"""TensorBoard's HParams page, asked as the browser asks it: every key of every run, and the final metrics of all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_research.training.callbacks import Results, TensorBoard


def finished(directory: Path, accuracy: float, **hyperparameters: str | float) -> None:
    """The event files of a run, without the run."""
    logits = np.eye(2, dtype=np.float32)
    metrics = {"val_accuracy": accuracy, "test_accuracy": accuracy / 2, "num_train": 7}
    TensorBoard(samples=0).finish(
        directory, Results(metrics, hyperparameters, ["a", "b"], np.array([0, 1]), logits, samples=[])
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """TensorBoard on loopback, on the logs of a sweep of three."""
    finished(tmp_path / "sweep" / "0", 0.5, transfer="frozen", seed=0)
    finished(tmp_path / "sweep" / "1", 0.75, transfer="finetune", seed=0, **{"transfer.backbone.epochs": 3})
    finished(tmp_path / "sweep" / "2", 0.625, transfer="frozen", seed=1)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0", "--load_fast=false"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://localhost:\d+", line)))
        yield address
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask(address: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/{name}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


@pytest.mark.slow
def test_every_key_of_every_run_is_there_and_the_final_metrics_of_all(server: str) -> None:
    for _ in range(60):  # it reads the logs while it serves
        experiment = ask(server, "experiment", {"experimentName": "", "includeMetrics": True})
        if {info["name"] for info in experiment.get("hparamInfos", [])} >= {"transfer.backbone.epochs"}:
            break
        time.sleep(0.5)
    keys = {info["name"]: info.get("differs", False) for info in experiment["hparamInfos"]}
    assert keys.keys() == {"transfer", "seed", "transfer.backbone.epochs"}
    assert keys["transfer"]
    assert keys["seed"]
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"final/val_accuracy", "final/test_accuracy"} <= metrics
    asked = {"colParams": [], "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_UNKNOWN"]}
    asked["colParams"] = [{"metric": {"group": "", "tag": "final/val_accuracy"}, "order": "ORDER_DESC"}]
    groups = ask(server, "session_groups", asked)["sessionGroups"]
    values = [metric["value"] for group in groups for metric in group["metricValues"] if "val_acc" in str(metric)]
    assert values == [0.75, 0.625, 0.5]
