"""Predict images with a trained run, on the same decode path as its training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.data.decode import UndecodableError, read_pixels
from tl_research.data.folder_scan import scan
from tl_research.errors import InputError
from tl_research.features.engines import keras_engine
from tl_research.features.extraction import in_batches, run_batches
from tl_research.metrics.classification import classification_metrics as score
from tl_research.metrics.classification import recall_by_class
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.system.progress import bar

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

Table = tuple[list[str], list[list[Any]]]


def prediction_rows(data: DataModule, indices: np.ndarray, logits: np.ndarray) -> Table:
    """Make header and rows of `predictions.csv`: path, split, label, prediction, and `p_<class>` per class."""
    names = data.class_names
    header = ["path", "split", "label", "prediction", *(f"p_{name}" for name in names)]
    probabilities = softmax(logits)
    rows = [
        [str(data.paths[i]), str(data.split_of[i]), names[data.labels[i]], names[int(row.argmax())], *map(float, row)]
        for i, row in zip(indices, probabilities, strict=True)
    ]
    return header, rows


def images_in(arguments: Iterable[Path]) -> list[Path]:
    """List files as given, and all images below folders as training reads them, sorted. Raises `InputError` for a
    folder without images."""
    paths: list[Path] = []
    for path in arguments:
        if path.is_dir():
            inside = scan(path, "IMAGES").tree.all_images()
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            paths += inside
        else:
            paths.append(path)  # even if missing: its row reports that
    return paths


def predict_images(run: Run, paths: Sequence[Path]) -> Table:
    """Make a row per image: path, prediction, `p_<class>` per class, and the error of an unreadable file."""
    names = run.class_names()
    rows = predict_logits(run, paths)
    header = ["path", "prediction", *(f"p_{name}" for name in names), "error"]
    table: list[list[Any]] = []
    for path, logits in zip(paths, rows, strict=True):
        if isinstance(logits, str):
            table.append([str(path), "", *[""] * len(names), logits])
        else:
            probabilities = softmax(logits[None])[0]
            table.append([str(path), names[int(probabilities.argmax())], *map(float, probabilities), ""])
    return header, table


def predict_logits(run: Run, paths: Sequence[Path]) -> list[np.ndarray | str]:
    """Compute logits `(num_classes,)` for each image, or why it cannot be read, in the order of `paths`."""
    model = run.model()
    size, resize, pixel_range = int(model.input_shape[1]), run.resize, run.pixel_range
    results: list[np.ndarray | str] = [""] * len(paths)

    def load(index: int) -> np.ndarray:
        try:
            return read_pixels(paths[index], size, resize, pixel_range)
        except UndecodableError as error:
            results[index] = str(error)
            return np.zeros((size, size, 3), np.uint8)

    batches = iter(in_batches(np.arange(len(paths))))
    # One thread, for TensorFlow uses all cores for a batch; the loader decodes the next meanwhile.
    with bar() as progress, closing(run_batches(keras_engine(model), load, batches, size, threads=1)) as done:
        task = progress.add_task("predicting", total=len(paths))
        for indices, logits in done:
            for index, row in zip(indices, logits, strict=True):
                results[index] = results[index] or row
            progress.advance(task, len(indices))
    return results


def evaluate_on(run: Run, data: DataModule, split: str | None = None) -> dict[str, Any]:
    """Evaluate a run on the images of a split of other data, `all` for every image; by default on its test images, or
    on all if it has no splits. `num` images were judged; `recall` of a class without any is None.

    Raises:
        InputError: there are no such images, or classes that the run has not.
    """
    names = run.class_names()
    if list(data.class_names) != names:
        raise InputError(f"{data.root}: its classes are {list(data.class_names)}, the run's are {names}")
    present = sorted({*data.split_of.tolist()})
    split = split or ("all" if present == ["all"] else "test")
    indices = np.arange(len(data)) if split == "all" else data.indices(split)
    if not len(indices):
        raise InputError(f"{data.root}: no {split} images; give --split, one of {', '.join(sorted({*present, 'all'}))}")
    results = predict_logits(run, [data.paths[i] for i in indices.tolist()])
    unreadable = [result for result in results if isinstance(result, str)]
    if unreadable:
        raise InputError(f"{data.root}: an image that was readable a moment ago is not: {unreadable[0]}")
    logits, labels = np.stack([row for row in results if not isinstance(row, str)]), data.labels[indices]
    return {
        "split": split,
        "num": len(indices),
        **score(logits, labels),
        "recall": recall_by_class(logits, labels, names),
    }
