"""Predict images with a trained run, on the same decode path as its training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from glob import has_magic, iglob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.backend.start import start_backend
from tl_research.data.decode import UndecodableError, read_pixels
from tl_research.data.folder_scan import scan
from tl_research.data.inspection import is_image_name
from tl_research.errors import InputError
from tl_research.features.engines import Engine, choose_engine, keras_engine, openvino_engine
from tl_research.features.extraction import in_batches, run_batches
from tl_research.metrics.classification import classification_metrics as score
from tl_research.metrics.classification import recall_by_class
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run
from tl_research.system.progress import bar

if TYPE_CHECKING:
    import keras

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


def images_in(arguments: Sequence[str | Path]) -> list[Path]:
    """List the images that arguments name, in their order.

    Files are taken as given: the row of a missing one reports that, unless all are missing. Folders are searched as
    training reads them, and so are those that a pattern (`*`, `?`, `[...]`, `**`) matches, beside images. `-` is a list
    of files and folders on standard input, a line each, or with a NUL behind each as of `find -print0`.

    Raises:
        InputError: an argument is empty; there are no images in a folder, none that match a pattern, or none on
            standard input; or nothing that is named exists.
    """
    if not all(map(str, arguments)):
        raise InputError("IMAGES: one of them is empty, such as a variable of the shell that is not set")
    paths: list[Path] = []
    for path in map(Path, arguments):
        if path == Path("-"):
            paths += [image for line in _listed_paths() for image in _files_at(line)]
        elif has_magic(str(path)) and not path.exists():
            paths += _matching(path.expanduser())
        else:
            paths += _files_at(path.expanduser())
    if Path("-") not in map(Path, arguments) and not any(map(os.path.lexists, paths)):
        raise InputError(f"{paths[0]}: does not exist")
    return paths


def _files_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if images := scan(path, "IMAGES").tree.all_images():
        return images
    raise InputError(f"{path}: no images in this folder")


def _matching(pattern: Path) -> list[Path]:
    found = {Path(name) for name in iglob(str(pattern), recursive=True)}  # noqa: PTH207 - the pattern may be absolute
    folders = [path for path in found if path.is_dir()]
    images = {path for path in found.difference(folders) if is_image_name(path)}
    images.update(image for folder in folders for image in scan(folder, "IMAGES").tree.all_images())
    if not images:
        raise InputError(f"{pattern}: no images match this pattern")
    return sorted(images)


def _listed_paths() -> list[Path]:
    content = sys.stdin.buffer.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    if paths := [Path(os.fsdecode(line)) for line in lines if line.strip()]:
        return paths
    raise InputError("-: standard input lists no images")


def predict_logits(run: Run, paths: Sequence[Path]) -> list[np.ndarray | str]:
    """Compute logits `(num_classes,)` for each image, or why it cannot be read, in the order of `paths`."""
    return list(each_logits(run, paths))


def each_logits(run: Run, paths: Sequence[Path]) -> Iterator[np.ndarray | str]:
    """Yield what `predict_logits` lists as it is computed, by the run's own engine, in bounded memory."""
    cores = start_backend()
    model = run.model()
    size, resize, pixel_range = int(model.input_shape[1]), run.resize, run.pixel_range
    engine, threads = engine_of(run, model, cores)
    reasons: dict[int, str] = {}

    def load(index: int) -> np.ndarray:
        try:
            return read_pixels(paths[index], size, resize, pixel_range)
        except UndecodableError as error:
            reasons[index] = str(error)
            return np.zeros((size, size, 3), np.uint8)

    batches = in_batches(np.arange(len(paths)))
    with bar() as progress, closing(run_batches(engine, load, batches, size, threads)) as done:
        task = progress.add_task("predicting", total=len(paths))
        for indices, logits in done:
            for index, row in zip(indices.tolist(), logits, strict=True):
                yield reasons.pop(index, row)
            progress.advance(task, len(indices))


def engine_of(run: Run, model: keras.Model, cores: int, batch_size: int | None = None) -> tuple[Engine, int]:
    """Build the run's engine and return the number of threads that feed it."""
    with suppress(InputError):  # OpenVINO is not installed here, or cannot run a head
        if choose_engine(run.config.get("engine", "auto")) == "openvino":
            return openvino_engine(model, cores, batch_size), cores
    # TensorFlow uses all cores for a batch; the loader decodes the next meanwhile.
    return keras_engine(model, batch_size), 1


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
        raise InputError(f"{data.root}: has no {split} images; it has --split {' or '.join(sorted({*present, 'all'}))}")
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
