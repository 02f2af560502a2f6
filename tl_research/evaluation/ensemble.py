"""Evaluate runs of one sweep as one classifier, their mean probability, and record it as a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tl_research.errors import InputError
from tl_research.evaluation.evaluate import evaluate_run, show_results
from tl_research.models.ensemble import build_ensemble
from tl_research.runs.run import Run
from tl_research.system.versions import versions
from tl_research.training.classifier_state import ClassifierState

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule

T = TypeVar("T")

Judged = dict[str, tuple[str, str]]
"""Split and label of each validation and test image, by its path below the folder that all share."""


def check_members(members: Sequence[Run]) -> None:
    """Raise `InputError`, with the difference, unless runs have the same classes, splits, and way to read images."""
    first = members[0]
    for other in members[1:]:
        for what, one, its in (
            ("classes", first.class_names(), other.class_names()),
            ("data.resize", first.resize, other.resize),
            ("range of pixel values", first.pixel_range, other.pixel_range),
        ):
            if one != its:
                raise InputError(f"{other.directory}: its {what} ({its}) is not that of {first.directory} ({one})")
        _demand_same(_judged(first), _judged(other), str(first.directory), str(other.directory))


def check_data(member: Run, data: DataModule) -> None:
    """Raise `InputError` unless the validation and test images are still those of a run."""
    indices = data.indices("val", "test").tolist()
    paths = [data.paths[i] for i in indices]
    rows = [(str(data.split_of[i]), data.class_names[data.labels[i]]) for i in indices]
    _demand_same(_judged(member), _by_path(paths, rows), str(member.directory), str(data.root))


def _judged(run: Run) -> Judged:
    rows = run.answers("predictions.csv")
    return _by_path([Path(row["path"]) for row in rows], [(row["split"], row["label"]) for row in rows])


def _by_path(paths: Sequence[Path], rows: Sequence[T]) -> dict[str, T]:
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return {path.relative_to(root).as_posix(): row for path, row in zip(paths, rows, strict=True)}


def _demand_same(one: Judged, other: Judged, name: str, other_name: str) -> None:
    differ = [path for path in {**one, **other} if one.get(path) != other.get(path)]
    if differ:
        here, there = (", labelled ".join(images.get(differ[0], ("training",))) for images in (other, one))
        raise InputError(
            f"{other_name}: {len(differ)} validation and test images are not those of {name}, such as {differ[0]}: "
            f"{here}, there {there}; an ensemble needs one data set, data.split_seed and data.fold"
        )


def ensemble_config(members: Sequence[Run], image_size: int) -> dict[str, Any]:
    """Make the `config.yaml` of an ensemble of runs, the best first: what all have in common, their directories, and
    the best one's data."""
    common = reduce(_in_common, (member.config for member in members))
    name = f"ensemble of {len(members)}"
    return common | {
        "choices": common.get("choices", {}) | {"backbone": name},
        "ensemble": [str(member.directory.absolute()) for member in members],
        "backbone": {"name": name, "image_size": image_size, "preprocessing": "each member's own"},
        "data": members[0].config.get("data", {}),
        "report": {"thumbnails": all(member.shows_pictures for member in members)},
    }


def _in_common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: (value, other[key]) for key, value in one.items() if key in other}
    nested = {k: _in_common(*pair) for k, pair in both.items() if all(isinstance(value, Mapping) for value in pair)}
    return {key: value for key, (value, its) in both.items() if value == its} | nested


def write_ensemble(run: Run, members: Sequence[Run], data: DataModule, threads: int) -> dict[str, np.ndarray]:
    """Build, save and evaluate the ensemble of runs, as it is read back from its file, and write the files of its run;
    return the logits of both splits."""
    with run.phase("build"):
        classifiers = [member.model() for member in members]
        ensemble = build_ensemble(classifiers)
        config = ensemble_config(members, ensemble.input_shape[1])
        run.write_config(config)
        run.write_json("classes.json", list(data.class_names))
        for name in ("data_check.json", "pixel_range.json", "set_aside.csv"):
            if (members[0].directory / name).is_file():
                (run.directory / name).write_bytes((members[0].directory / name).read_bytes())
        run.write_json("weights.json", _joined([member.weights for member in members]))
    with run.phase("save"):
        run.write_model(ensemble)
    state = ClassifierState.of_model(run.model(), data, threads, run.phase)
    state.held_out, state.chosen_by_val = _held_out(members, data), True
    run.metrics |= {
        "random_weights": any(bool(member.metrics.get("random_weights")) for member in members),
        "num_parameters": sum(int(classifier.count_params()) for classifier in classifiers),
        "num_members": len(members),
        **{f"num_{split}": len(data.indices(split)) for split in ("train", "val", "test")},
        **{"num_classes": len(data.class_names), "num_quarantined": len(data.quarantined), "dataset": data.dataset},
    }
    with run.phase("evaluate"):
        metrics, logits = evaluate_run(run, state, None)
    run.metrics |= metrics | versions()
    run.write_json("metrics.json", run.metrics)
    show_results(run, state, (), config, logits["test"], pictures=config["report"]["thumbnails"])
    run.write_json("metrics.json", run.metrics)
    return logits


def _held_out(members: Sequence[Run], data: DataModule) -> np.ndarray | None:
    """Average the answers to the validation images, by heads that did not learn from them where the saved ones did: the
    logarithm of the mean probability `(n, k)`. None where no saved one did: then the ensemble itself answers."""
    if not any((member.directory / "validation.csv").is_file() for member in members):
        return None
    keys = _by_path([data.paths[i] for i in data.indices("val").tolist()], data.indices("val").tolist())
    probabilities = []
    for member in members:
        answers = member.answers("validation.csv") or member.answers("predictions.csv")
        rows = [row for row in answers if row["split"] == "val"]
        by_path = _by_path([Path(row["path"]) for row in rows], rows)
        probabilities.append([[float(by_path[key][f"p_{name}"]) for name in data.class_names] for key in keys])
    return np.log(np.maximum(np.mean(probabilities, axis=0), 1e-30)).astype(np.float32)


def _joined(weights: Sequence[Mapping[str, str | None]]) -> dict[str, str | None]:
    """Describe the weights of all members as those of one model; what is not known of one is not known."""
    joined = {key: list(dict.fromkeys(one.get(key) for one in weights)) for key in ("backbone", "weights", "licence")}
    if len(joined["weights"]) > 1:
        joined["weights"] = [value or "random" for value in joined["weights"]]
    return {key: None if None in values else ", ".join(map(str, values)) for key, values in joined.items()}
