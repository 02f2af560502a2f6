"""Evaluate a trained classifier and show the results through callbacks."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tl_research.data.datamodule import DataModule
from tl_research.data.decode import UndecodableError, open_image
from tl_research.data.pixel_range import AS_STORED, PixelRange
from tl_research.evaluation.calibration import calibrate_run
from tl_research.evaluation.predict import prediction_rows
from tl_research.metrics.classification import classification_metrics, recall_by_class
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.system.console import only_warning, printable
from tl_research.training.callbacks import Callback, Results
from tl_research.training.classifier_state import ClassifierState

MOST_SAMPLES = 16
MOST_MISTAKES = 12
THUMBNAIL = 128

# Keys that name places, say how to run, or repeat the option of a group: hidden unless the command gives them.
_HIDDEN = {
    *("data.cache", "features.store", "features.max_gb", "verbose", "fresh", "missing_weights", "resume", "shard"),
    *(
        f"backbone.{key}"
        for key in ("name", "url", "min_size", "distribution", "variant", "application", "build.application", "licence")
    ),
}


def evaluate_run(
    run: Run, state: ClassifierState, test_views: int | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluate on validation and test, if there are any, and write the predictions; return the metrics and the logits
    `(n, num_classes)` of each. Without test images there are no `test_...`, and `tested` is false. With `test_views`
    there are also `test_tta_...`, of the average over augmented views."""
    data = state.data
    metrics: dict[str, Any] = {}
    none = np.empty((0, len(data.class_names)), np.float32)
    logits = {split: state.logits(split) if len(data.indices(split)) else none for split in ("val", "test")}
    indices = np.concatenate([data.indices(split) for split in logits])
    run.write_csv("predictions.csv", *prediction_rows(data, indices, np.concatenate(list(logits.values()))))
    if state.held_out is not None:
        logits["val"] = state.held_out
        run.write_csv("validation.csv", *prediction_rows(data, data.indices("val"), state.held_out))
    if state.test_by_halves is not None and len(state.test_by_halves):
        run.write_json("half_heads.json", half_heads(data, state.test_by_halves))
    commonest = np.bincount(data.labels[data.indices("train")]).argmax()
    for split, values in logits.items():
        if not len(values):
            continue
        indices = data.indices(split)
        groups = None if data.groups is None else data.groups[indices]
        scores = classification_metrics(values, data.labels[indices], groups)
        metrics |= {f"{split}_{name}": value for name, value in scores.items()}
        metrics[f"{split}_recall"] = recall_by_class(values, data.labels[indices], data.class_names)
        metrics[f"{split}_majority"] = float(np.mean(data.labels[indices] == commonest))
    if not len(logits["test"]):
        metrics["tested"] = False
    elif test_views:
        averaged = state.averaged_logits("test", test_views)
        scores = classification_metrics(averaged, data.labels[data.indices("test")])
        metrics |= {f"test_tta_{name}": value for name, value in scores.items()}
    metrics |= calibrate_run(run, state, logits["val"], logits["test"])
    return metrics, logits


def half_heads(data: DataModule, answers: np.ndarray) -> dict[str, Any]:
    """Say which test images heads on halves of the training images answer correctly, from their `answers` `(2 h, n)`: a
    text of 0 and 1 for each head. `learned` names the images, classes and groups that were divided."""
    learned = data.indices("train", "val")
    together = data.kept_together(learned)
    groups = [""] * len(learned) if together is None else together.tolist()
    known = [(data.digests[i].hex(), int(data.labels[i]), str(group)) for i, group in zip(learned, groups, strict=True)]
    right = (answers == data.labels[data.indices("test")]).astype(int)
    texts = ["".join(map(str, row)) for row in right.tolist()]
    return {"learned": hashlib.sha256(repr(known).encode()).hexdigest(), "right": texts}


def show_results(
    run: Run,
    state: ClassifierState,
    callbacks: Iterable[Callback],
    config: Mapping[str, Any],
    logits: np.ndarray,
    *,
    pictures: bool = True,
) -> None:
    """Write the worst of the test `logits` to `mistakes.json`, and pass logits, metrics and hyperparameters to the
    callbacks. What fails gives a warning: the run has its results."""
    data, indices = state.data, state.data.indices("test")
    shown = np.random.default_rng(0).permutation(len(indices))[:MOST_SAMPLES]
    samples: list[tuple[np.ndarray, int, np.ndarray]] = []
    with only_warning("mistakes.json"), run.phase("evaluate"):
        run.write_json("mistakes.json", mistakes(data, logits, pictures))
    with only_warning("sample predictions"):
        for n in shown if pictures else ():
            samples.append((data.pixels(int(indices[n]), state.image_size), int(data.labels[indices[n]]), logits[n]))
    shown_keys = hyperparameters(config, run.overrides)
    results = Results(run.metrics, shown_keys, data.class_names, data.labels[indices], logits, samples)
    with run.phase("callbacks"):
        for callback in callbacks:
            with only_warning(f"callback {type(callback).__name__}"):
                callback.finish(run.directory, results)


def mistakes(data: DataModule, logits: np.ndarray, pictures: bool = True) -> list[dict[str, Any]]:
    """List the most confident errors on the test images, the worst first; `logits` `(n, k)`. With `pictures` each has a
    small JPEG, for the photographs may be gone when the report is made."""
    indices, probabilities = data.indices("test"), softmax(logits)
    labels, predicted, confidence = data.labels[indices], probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return [
        {
            "path": str(data.paths[indices[n]]),
            "label": data.class_names[labels[n]],
            "prediction": data.class_names[predicted[n]],
            "probability": round(float(confidence[n]), 6),
            **({"jpeg": thumbnail(data.paths[indices[n]], data.pixel_range)} if pictures else {}),
        }
        for n in wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    ]


def thumbnail(path: Path, pixel_range: PixelRange = AS_STORED) -> str:
    """Encode an image no larger than `THUMBNAIL` as a JPEG in base64, without the place, comments and all else in its
    file; empty if the file has vanished, which must not fail a run at its end."""
    try:
        image = open_image(path, THUMBNAIL, pixel_range)
    except UndecodableError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return as_jpeg(image)


def as_jpeg(image: Image.Image) -> str:
    """Encode the pixels alone of an image as a JPEG in base64."""
    content = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(content, "jpeg", quality=82)
    return base64.b64encode(content.getvalue()).decode()


def hyperparameters(config: Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Flatten a configuration: the option of each group, then plain values by the key a user would set, null as text.
    Whatever the overrides of the command set is among them."""
    given = dict(text.lstrip("+~").partition("=")[::2] for text in overrides)
    flat = _flatten({key: value for key, value in config.items() if key != "choices"})
    shown = {k: v for k, v in flat.items() if k in given or not (k in _HIDDEN or k.startswith("callbacks."))}
    return {**config.get("choices", {}), **{key: given[key] for key in given if "/" in key}, **shown}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif key != "_target_":
            plain = isinstance(value, bool | int | float)
            flat[f"{prefix}{key}"] = value if plain else "null" if value is None else printable(str(value))
    return flat
