"""The model card of a run (Mitchell et al. 2019, arXiv 1810.03993): what it was made from, and how far to trust it.

It is Markdown with the front matter that the Hugging Face hub reads, made from the run's directory alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tl_research import __version__
from tl_research.errors import InputError
from tl_research.metrics.by_class import scores_by_class
from tl_research.metrics.calibration import conformal_threshold
from tl_research.reports.answered import read_answered
from tl_research.reports.entries import Entry
from tl_research.runs.reader import answering_backbone, read_json
from tl_research.runs.run import Run
from tl_research.system.console import printable
from tl_research.system.files import write_atomically

CARD = "model_card.md"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
METRICS = {
    "accuracy": "accuracy: share of right answers",
    "macro_f1": "macro F1",
    "auroc": "AUROC, one class against the rest",
    "loss": "log loss, in nats (lower is better)",
}
HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "auroc": "roc_auc"}

FEW_TRAIN, FEW_TEST = 30, 100
"""Fewer training images of a class, or fewer test images, are called few."""

UNEVEN = 2.0
"""Classes are unbalanced where the largest has more than so many times the training images of the smallest."""


def write_card(run: Run, path: Path | None = None) -> Path:
    """Write the card of a run, by default to `model_card.md` in its directory. Raises `InputError` if it has no
    results."""
    if "num_train" not in run.metrics:
        raise InputError(f"{run.directory}: no results in its metrics.json; its status is '{run.status['state']}'")
    path = path or run.directory / CARD
    write_atomically(path, model_card(run))
    return path


def model_card(run: Run) -> str:
    """Make the card's text. Names from the data are escaped, so that each is shown to the letter."""
    name, backbone = run.directory.absolute().name, answering_backbone(run.config, run.metrics)
    parts = [
        f"# {plain_markdown(name)}",
        f"An image classifier: {plain_markdown(str(backbone.get('name')))}{_chosen(run)}, on {_source(run)}. "
        f"Its classes: {', '.join(map(plain_markdown, run.class_names()))}.",
        "## Intended use and limits",
        "To classify photographs like those it learned from, where a person can check an answer that matters. Not for "
        "decisions on health, safety or people without a study of their own.",
        _list(limits(run)),
        "## Data",
        *_data(run),
        "## Results",
        *_results(run),
        "## Calibration and prediction sets",
        *_calibration(run),
        "## Preprocessing",
        f"RGB, 0 to 255, upright by EXIF, `data.resize={run.resize}` to a side of {backbone.get('image_size')}; "
        f"then `{backbone.get('preprocessing')}`, which is part of `model.keras`. It gives logits; divide them by the "
        "temperature before the softmax.",
        "## Licences",
        _licences(run),
        "## Repeat it",
        *_repeat(run),
    ]
    return "\n\n".join([_front_matter(run, name), *filter(None, parts)]) + "\n"


def _chosen(run: Run) -> str:
    m, said = run.metrics, []
    if "candidates" in m:
        said.append(f"chosen among {m['candidates']} candidates by cross-validation")
    if "tuned" in m.get("members", ()):
        of = plain_markdown(m.get("tuned_backbone", "the network"))
        said.append("fine-tuned" if m["members"] == ["tuned"] else f"mean of this and of {of}, fine-tuned")
    return f" ({'; '.join(said)})" if said else ""


def plain_markdown(text: str) -> str:
    """Escape a text for the inside of a line of Markdown, also of a table: it is shown to the letter."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!:@=^])", r"\\\1", printable(text)).replace("www.", "www\\.")


def _front_matter(run: Run, name: str) -> str:
    """Make the YAML that the hub reads (https://huggingface.co/docs/hub/model-cards)."""
    import yaml

    metrics = [
        {"type": hub, "value": run.metrics[f"test_{key}"], "name": f"Test {METRICS[key].partition(':')[0]}"}
        for key, hub in HUB_METRICS.items()
        if f"test_{key}" in run.metrics
    ]
    source = printable(PurePath(Entry.of(run).source).name) or "images"
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": "imagefolder", "name": source, "split": "test"},
        "metrics": metrics,
    }
    content = {
        "license": (run.weights["licence"] or "unknown").lower(),
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "keras", "transfer-learning", "tl_research"],
        **({"model-index": [{"name": printable(name), "results": [result]}]} if metrics else {}),
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def limits(run: Run) -> list[str]:
    """List what limits the trust in a run, from its own facts."""
    m, state, found = run.metrics, run.status["state"], []
    if state not in ("done", "running"):
        found.append(f"The run's status is '{state}': it did not end as planned.")
    check = read_json(run.directory / "data_check.json")
    train: dict[str, int] = check.get("images", {}).get("train", {})
    if train:
        rarest, commonest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
        if train[rarest] < FEW_TRAIN:
            found.append(
                f"Few images: it learned {plain_markdown(rarest)} from {train[rarest]} image(s), and all classes "
                f"together from {m.get('num_train')}."
            )
        if train[commonest] > UNEVEN * train[rarest]:
            found.append(
                f"The classes are not balanced: {train[commonest]} training images of {plain_markdown(commonest)}, "
                f"{train[rarest]} of {plain_markdown(rarest)}. Read the results of each class, not accuracy alone."
            )
    for key, words in {"num_leaks": "lie in more than one split", "num_conflicts": "have different labels"}.items():
        if check.get(key):
            found.append(f"{check[key]} set(s) of equal images {words}: the results do not say how good it is.")
    if "test_accuracy" not in m:
        found.append("No images were held out for testing: nothing is known of its accuracy on new images.")
    elif m.get("num_test", FEW_TEST) < FEW_TEST:
        found.append(
            f"With {m['num_test']} test images the accuracy is only known to lie between "
            f"{m['test_accuracy_low']:.3f} and {m['test_accuracy_high']:.3f} (95 % interval)."
        )
    if m.get("test_accuracy_low", 1.0) <= m.get("test_majority", 0.0):
        found.append("It is not clearly better than always giving the commonest class.")
    if m.get("random_weights"):
        found.append("Its pretrained weights were missing, and random ones replaced them.")
    group_by = run.config.get("data", {}).get("group_by")
    found.append(
        f"Images of one group ({_code(group_by)}) are in one split: the results are for groups that it has not seen."
        if group_by
        else "Images were divided one by one: if several show one object, person or scene, the results are too good."
    )
    found.append("Anything else than its classes gets one of its classes, often with a high probability.")
    found.append("Another camera, place or time voids all numbers below until they are measured there.")
    return found


def _data(run: Run) -> Iterable[str]:
    m = run.metrics
    counts: Mapping[str, Mapping[str, int]] = read_json(run.directory / "data_check.json").get("images", {})
    learned = (run.directory / "validation.csv").is_file()
    also = " In the end it learned from the validation images, too." if learned else ""
    digest = f", with the digest `{m['dataset']}`" if m.get("dataset") else ""
    yield f"From {_source(run)}{digest}. The test images chose nothing.{also}"
    names = list(dict.fromkeys(name for split in counts.values() for name in split))
    rows = [[plain_markdown(name), *(counts.get(split, {}).get(name, 0) for split in SPLITS)] for name in names]
    rows.append(["all", *(m.get(f"num_{split}", "–") for split in SPLITS)])
    yield _table(["class", *SPLITS.values()], rows)
    if m.get("num_quarantined"):
        yield f"{m['num_quarantined']} file(s) could not be read and were set aside: `set_aside.csv` says why."


def _results(run: Run) -> Iterable[str]:
    m = run.metrics
    rows = [
        [words, *(_with_interval(m, f"{split}_{key}") for split in ("test", "val"))]
        for key, words in METRICS.items()
        if f"test_{key}" in m or f"val_{key}" in m
    ]
    if "test_majority" in m:
        rows.append(
            ["always giving the commonest class", f"{m['test_majority']:.3f}", f"{m.get('val_majority', 0):.3f}"]
        )
    yield _table(["metric", "test (95 % interval)", "validation"], rows)
    yield "Validation images may have chosen settings or epochs, so their numbers are optimistic."
    answered = read_answered(run.directory)
    if answered:
        scores = scores_by_class(answered.labels, answered.predicted, len(answered.class_names))
        lines = [
            [
                plain_markdown(name),
                score["count"],
                _fixed(score["precision"]),
                _span(score, "recall"),
                _fixed(score["f1"]),
            ]
            for name, score in zip(answered.class_names, scores, strict=True)
        ]
        yield "Each class, on test images; precision: of the images given this class, the share that has it:"
        yield _table(["class", "images", "precision", "recall (95 % interval)", "F1"], lines)


def _calibration(run: Run) -> Iterable[str]:
    known, m = run.calibration, run.metrics
    if "fitted_on" not in known:
        yield "Not calibrated: take its probabilities as scores only."
        return
    optimistic = ", which also chose the epoch, so this is optimistic" if known["optimistic"] else ""
    yield (
        f"Temperature {known['temperature']:.3g}, fitted on {known['num']} {known['fitted_on']} answers{optimistic}."
    )
    if "test_ece" in m:
        rows = [
            ["expected calibration error", _fixed(m["test_ece"]), _fixed(m["test_ece_calibrated"])],
            ["log loss", _fixed(m["test_loss"]), _fixed(m["test_loss_calibrated"])],
        ]
        yield _table(["on test images", "as it is", "with the temperature"], rows)
    if known.get("coverage"):
        rows = [
            [f"{one['asked']:.0%}", f"{one['covered']:.1%}", f"{one['mean_size']:.2f}", _fixed(conformal_threshold(
                known["scores"], one["asked"]))]
            for one in known["coverage"]
        ]  # fmt: skip
        yield (
            "Prediction sets hold the answer, and all classes whose probability, with the temperature, is at least 1 - "
            "threshold. Of the test images' classes they held:"
        )
        yield _table(["asked", "held", "classes in a set, mean", "threshold"], rows)


def _licences(run: Run) -> str:
    weights = run.weights
    licence = weights["licence"] or ("none needed" if weights["weights"] is None else "not known")
    begun = "random weights" if weights["weights"] is None else f"the weights {plain_markdown(weights['weights'])}"
    return (
        f"Training began from {begun} of {plain_markdown(str(weights['backbone']))}: {licence}. What the licence of "
        "the images allows, and under which licence this model may be passed on, its owner must say."
    )


def _repeat(run: Run) -> Iterable[str]:
    if members := run.config.get("ensemble"):
        yield f"`python -m tl_research ensemble` joined {len(members)} runs; `config.yaml` beside this card lists them."
        return
    if run.command is None:
        yield "Started from Python; `config.yaml` beside this card holds every key."
        return
    command = printable(run.command)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    yield f"{fence}\n{command}\n{fence}"
    versions = [f"{key.removeprefix('version_')} {value}" for key, value in run.metrics.items() if "version_" in key]
    yield f"Seed {run.metrics.get('seed')}; {', '.join(versions) or f'tl_research {__version__}'}."


def _source(run: Run) -> str:
    return _code(PurePath(Entry.of(run).source).name or "images")  # its folder is nobody's business


def _code(text: str) -> str:
    """Show a text as code, to the letter."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _span(values: Mapping[str, Any], key: str) -> str:
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    return _fixed(values[key]) + (f" ({low:.3f} – {high:.3f})" if low is not None else "")


def _with_interval(metrics: Mapping[str, Any], key: str) -> str:
    return _span(metrics, key) if key in metrics else "–"
