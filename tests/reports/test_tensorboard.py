"""What TensorBoard reads of a run, and its HParams page, asked as the browser asks it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from tl_research.reports.tensorboard import TensorBoard
from tl_research.training.callbacks import Results

SCALARS = {"loss/train", "loss/val", "stage/learning_rate", "final/val_accuracy", "final/cv_accuracy"}
HPARAMS = "_hparams_/session_start_info"
PICTURES = {"train/batch": 3, "test/confusion_matrix": 0, "test/predictions": 0}
"""Tags, and the epochs they are shown at."""


def finished(directory: Path, accuracy: float, **hyperparameters: str | float) -> None:
    """The event files of a run, without the run."""
    logits = np.eye(2, dtype=np.float32)
    metrics = {"val_accuracy": accuracy, "test_accuracy": accuracy / 2, "num_train": 7}
    TensorBoard(samples=0).finish(
        directory, Results(metrics, hyperparameters, ["a", "b"], np.array([0, 1]), logits, samples=[])
    )


def test_event_files_hold_scalars_pictures_and_hyperparameters(tmp_path: Path) -> None:
    recipe, pixels = TensorBoard(samples=1), np.full((1, 8, 8, 3), 7, np.uint8)
    recipe.see(tmp_path, 3, pixels, np.eye(2)[:1], ["a", "b"])
    for first in (0, 2):  # a stage each
        scalars = recipe.build(tmp_path)
        for epoch in (first, first + 1):
            scalars.on_epoch_end(epoch, {"loss": 0.1 * epoch, "val_loss": np.float64(epoch), "learning_rate": 1e-3})
    logits = np.eye(2, dtype=np.float32)
    metrics = {"val_accuracy": 0.5, "cv_accuracy": 0.75, "test_loss": None}
    samples = [(pixels[0], 0, logits[0])]
    recipe.finish(tmp_path, Results(metrics, {"head": "mlp", "n": 2}, ["a", "b"], np.array([0, 1]), logits, samples))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {TENSORS: 0})
    with warnings.catch_warnings():  # TensorBoard's reader uses TensorFlow's old one
        warnings.simplefilter("ignore")
        events.Reload()
    points = {tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)] for tag in SCALARS}
    assert points["loss/train"] == [(epoch, pytest.approx(0.1 * epoch)) for epoch in range(4)]
    assert points["loss/val"] == [(epoch, epoch) for epoch in range(4)]
    assert points["final/val_accuracy"] == [(0, 0.5)]
    assert set(events.Tags()[TENSORS]) == {*SCALARS, *PICTURES, HPARAMS}
    for tag, step in PICTURES.items():
        (event,) = events.Tensors(tag)
        width, height, png = make_ndarray(event.tensor_proto)
        assert event.step == step
        assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "images"
    content = events.PluginTagToContent("hparams")[HPARAMS]
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (values["head"].string_value, values["n"].number_value) == ("mlp", 2)


def test_names_that_cannot_be_drawn_have_a_legend(tmp_path: Path) -> None:
    results = Results({}, {}, ["a", "\U000f0000"], np.array([0, 1]), np.eye(2), samples=[])
    TensorBoard().finish(tmp_path, results)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {TENSORS: 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events.Reload()
    (event,) = events.Tensors("test/classes")
    assert make_ndarray(event.tensor_proto)[0].decode() == "    #1  \U000f0000"


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
        address = next(match[0] for line in process.stderr if (match := re.search(r"http://localhost:\d+", line)))
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
def test_the_hparams_page_has_all_keys_and_final_metrics(server: str) -> None:
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
