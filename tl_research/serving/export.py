"""Export a run's model to a format that needs none of this package, and prove that it answers as the run does."""

from __future__ import annotations

import glob
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.data.pixel_range import AS_STORED
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.serving.check_images import check_images, is_deep
from tl_research.serving.facts import facts_of
from tl_research.serving.snippets import usage_script
from tl_research.system.locks import is_held, try_lock
from tl_research.system.process import importable

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

TOLERANCE = 1e-4
"""Largest difference of a probability from the run's own that an export in float32 may have. (Measured: 5e-7.)"""

TIE = 1e-5
"""Two classes this close are equally probable: either may come first."""

JOB = ".export"
"""How the name of a folder ends in which an export is made."""

MOST_IMAGES, MOST_FOR_INT8 = 32, 300
INT8_FORMATS = ("openvino", "litert")
_PACKAGES = {"onnx": ("onnx", "tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}


@dataclass(frozen=True)
class Exported:
    """An exported model: its folder, its size in bytes, and milliseconds an image for one and for 16 at once.

    `difference` is the largest of a probability from the run's own on `num_images`; `changed` lists path, the run's
    class and the new one where these differ. In int8 `accuracy` is that of the run and of the exported model on
    training and validation images.
    """

    folder: Path
    num_bytes: int
    milliseconds: tuple[float, float]
    num_images: int
    difference: float
    changed: list[tuple[str, str, str]]
    accuracy: tuple[float, float] | None = None


def export_run(
    run: Run, format_: str, output: Path | None = None, data: DataModule | None = None, max_drop: float = 0.01
) -> Exported:
    """Export a run's model to `output`, by default `RUN/export/FORMAT`, with `data` `FORMAT-int8`; an earlier export
    there is replaced.

    Args:
        format_: one of `FORMATS`.
        data: the run's images, to quantize the model to 8 bits.
        max_drop: how much accuracy it may lose by that.

    Raises:
        InputError: a package is missing, the format cannot hold the model, or the exported model does not answer as
            the run does. Nothing is left then.
    """
    needed = (*_PACKAGES.get(format_, ()), *(("nncf",) if data and format_ == "openvino" else ()))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InputError(f'export --to {format_} needs {", ".join(missing)}: pip install "tl_research[export]"')
    facts = facts_of(run) | {"precision": "int8" if data else "float32"}
    target = output or run.directory / "export" / (f"{format_}-int8" if data else format_)
    with _job_folder(target) as job:
        artifact = job / "artifact"
        artifact.mkdir()
        (artifact / "model.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        paths, labels = _write_images(job, run, facts, data)
        deep = run.pixel_range if run.pixel_range != AS_STORED or any(map(is_deep, filter(None, paths))) else None
        (artifact / "use.py").write_text(usage_script(format_, facts["image_size"], facts["resize"], deep))
        order = {"format": format_, "facts": facts, "int8": data is not None, "max_drop": max_drop}
        (job / "job.json").write_text(json.dumps(order))
        _run_module("converters", format_, run.directory.absolute(), job)
        _run_module("runtimes", format_, format_, artifact, job / "images.npy", job / "answers.npz")
        exported = _compare(job, target, paths, labels, facts["class_names"])
        _refuse_if_wrong(exported, format_, max_drop)
        _replace(target, artifact)
    return exported


def _write_images(job: Path, run: Run, facts: dict[str, Any], data: DataModule | None) -> tuple[list[str], np.ndarray]:
    """Write the images that the job needs. Return the paths of those to compare, and the labels of more images behind
    these that control the accuracy of int8."""
    size = facts["image_size"]
    paths, images = check_images(run, size, facts["resize"], MOST_FOR_INT8 if data else MOST_IMAGES)
    labels = np.zeros(0, int)
    if data is not None:
        train = _some(data.indices("train"))
        control = np.concatenate([data.indices("val"), train])[:MOST_FOR_INT8]
        np.save(job / "calibration.npy", np.stack([data.pixels(int(i), size) for i in train]))
        controls, labels = np.stack([data.pixels(int(i), size) for i in control]), data.labels[control]
        np.save(job / "control.npy", controls)
        np.save(job / "labels.npy", labels)
        images = np.concatenate([images, controls])
    np.save(job / "images.npy", images)
    return paths, labels


def _some(indices: np.ndarray) -> np.ndarray:
    """Choose at most `MOST_FOR_INT8`, evenly spread."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(MOST_FOR_INT8, len(indices)), dtype=int))]


def _compare(job: Path, target: Path, paths: list[str], labels: np.ndarray, names: list[str]) -> Exported:
    """Compare the answers of the exported model with the run's."""
    answers, expected = np.load(job / "answers.npz"), np.load(job / "expected.npy")
    given, count = answers["probabilities"], len(paths)
    if given.shape != expected.shape or not np.isfinite(given).all():
        raise InputError(f"export: the answers of the exported model are {given.shape}, not finite {expected.shape}")
    old, new = expected.argmax(axis=1), given.argmax(axis=1)
    rows = np.arange(len(old))
    differ = np.flatnonzero((expected[rows, old] - expected[rows, new])[:count] > TIE)
    accuracy = (float(np.mean(old[count:] == labels)), float(np.mean(new[count:] == labels))) if len(labels) else None
    return Exported(
        folder=target,
        num_bytes=sum(path.stat().st_size for path in (job / "artifact").rglob("*") if path.is_file()),
        milliseconds=(float(answers["milliseconds"][0]), float(answers["milliseconds"][1])),
        num_images=count,
        difference=float(np.abs(given - expected)[:count].max()),
        changed=[(paths[n], names[old[n]], names[new[n]]) for n in differ],
        accuracy=accuracy,
    )


def _refuse_if_wrong(exported: Exported, format_: str, max_drop: float) -> None:
    """Raise `InputError` unless a float32 model answers as the run does, and an int8 model as accurately."""
    if exported.accuracy is None:
        if exported.changed or exported.difference > TOLERANCE:
            raise InputError(
                f"export --to {format_}: the exported model does not answer as the run does (largest difference of a "
                f"probability {exported.difference:.2g}, {len(exported.changed)} of {exported.num_images} images get "
                f"another class); nothing is written: choose another format"
            )
    elif (drop := exported.accuracy[0] - exported.accuracy[1]) > max_drop + 1e-9:
        raise InputError(
            f"export --to {format_} --int8: accuracy on training and validation images drops by {drop:.3f}, more than "
            f"--max-drop {max_drop:g}; nothing is written: leave out --int8, or allow more"
        )


@contextmanager
def _job_folder(target: Path) -> Iterator[Path]:
    """Open a temporary folder beside the target, whose parents are created; remove all that is not to stay."""
    if target.exists() and not (target / "use.py").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--output {target}: there is something else already; name another folder")
    created = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for earlier in target.parent.glob(f".{glob.escape(target.name)}.*{JOB}"):
        with suppress(OSError):
            if not is_held(earlier / "lock"):  # its process was killed
                shutil.rmtree(earlier)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=JOB) as job:
            lock = try_lock(Path(job) / "lock")
            yield Path(job)
            del lock
    finally:
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()


def _run_module(name: str, format_: str, *arguments: Any) -> None:
    """Run a module of ours in a process of its own. Raises `InputError` with the last line that it printed."""
    with importable():
        command = [sys.executable, "-m", f"tl_research.serving.{name}", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        what = "cannot be made" if name == "converters" else "cannot be run"
        raise InputError(f"export --to {format_}: the model {what} ({lines[-1][:300]}); choose another format")


def _replace(target: Path, artifact: Path) -> None:
    """Move the whole model to its place."""
    if target.exists():
        target.rename(artifact.with_name("earlier"))
    artifact.rename(target)
