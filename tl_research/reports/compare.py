"""Compare runs on the test images that they share, in words, numbers and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from tl_research.data.pixel_range import AS_STORED, PixelRange
from tl_research.data.splits import groups_of
from tl_research.errors import InputError
from tl_research.metrics.paired import LEVEL, Comparison, compare_answers, holm
from tl_research.reports.static_page import html_table, image_cards, paragraph, section, static_page
from tl_research.runs.reader import read_json
from tl_research.runs.run import Run
from tl_research.system.files import write_atomically

MOST_IMAGES = 200


@dataclass(frozen=True)
class Answers:
    """A run's answers to its test images, by their paths below the data's folder, sorted."""

    name: str
    paths: dict[str, Path]
    labels: dict[str, str]
    predictions: dict[str, str]
    groups: np.ndarray | None
    halves: np.ndarray | None = None
    """Which images heads on halves of the training images answer correctly, `(2 h, n)`; `learned` names the latter."""
    learned: str = ""
    pixel_range: PixelRange = AS_STORED
    shows_pictures: bool = True

    @property
    def correct(self) -> np.ndarray:
        """Return which images `(n,)` are answered correctly."""
        return np.array([self.predictions[key] == label for key, label in self.labels.items()])

    @property
    def accuracy(self) -> float:
        """Return the share of correct answers."""
        return float(self.correct.mean())


def read_answers(directory: Path) -> Answers:
    """Read a run's answers from `predictions.csv`. Raises `InputError` if it has none to test images."""
    run = Run.open(directory)
    rows = run.answers("predictions.csv")
    if not rows:
        raise InputError(f"{directory}: no predictions.csv; the run's status is '{run.status['state']}'")
    root = _common_folder([Path(row["path"]) for row in rows], run)
    tested = sorted((row for row in rows if row["split"] == "test"), key=lambda row: row["path"])
    if not tested:
        raise InputError(f"{directory}: no test images in its predictions.csv; runs are compared by them")
    keys = [Path(row["path"]).relative_to(root).as_posix() for row in tested]
    pattern = run.config.get("data", {}).get("group_by")
    paths = [Path(row["path"]) for row in tested]
    return Answers(
        str(directory),
        dict(zip(keys, paths, strict=True)),
        {key: row["label"] for key, row in zip(keys, tested, strict=True)},
        {key: row["prediction"] for key, row in zip(keys, tested, strict=True)},
        groups_of(paths, root, pattern) if pattern else None,
        *_read_halves(directory, [row["path"] for row in rows if row["split"] == "test"]),
        run.pixel_range,
        run.shows_pictures,
    )


def _read_halves(directory: Path, paths: Sequence[str]) -> tuple[np.ndarray | None, str]:
    """Read `half_heads.json`, whose images are in the order of `paths`, as `halves` and `learned` of `Answers`."""
    content = read_json(directory / "half_heads.json")
    texts = content.get("right", [])
    if not texts or {len(text) for text in texts} != {len(paths)}:
        return None, ""
    right = np.array([[mark == "1" for mark in text] for text in texts])
    return right[:, np.argsort(paths)], str(content.get("learned", ""))


def _common_folder(paths: Sequence[Path], run: Run) -> Path:
    """Return the data's folder; of a run that does not name one, the deepest folder that all images share."""
    root = run.config.get("data", {}).get("root")
    if root and all(path.is_relative_to(root) for path in paths):
        return Path(root)
    return Path(os.path.commonpath([path.parent for path in paths]))


def demand_same_images(first: Answers, second: Answers) -> None:
    """Raise `InputError` unless both runs were tested on the same images with the same labels."""
    for one, other in ((first, second), (second, first)):
        missing = [key for key in one.labels if key not in other.labels]
        if missing:
            raise InputError(
                f"{second.name}: its test images are not those of {first.name}: {len(missing)} of {one.name} are not "
                f"in {other.name}, such as {missing[0]}; give both the same data, data.split_seed and data.fold"
            )
    changed = [key for key, label in first.labels.items() if second.labels[key] != label]
    if changed:
        raise InputError(
            f"{second.name}: {len(changed)} test image(s) have another label than in {first.name}, such as "
            f"{changed[0]}: {second.labels[changed[0]]} instead of {first.labels[changed[0]]}"
        )


@dataclass(frozen=True)
class Pair:
    """Two runs, compared; `p_value` is corrected for the number of pairs."""

    first: Answers
    second: Answers
    comparison: Comparison
    p_value: float

    @property
    def decided(self) -> bool:
        """Tell whether one is better beyond chance."""
        return self.p_value < LEVEL

    @property
    def better(self) -> str | None:
        """Name the better run, None where that is not decided."""
        if not self.decided:
            return None
        return self.second.name if self.comparison.difference > 0 else self.first.name

    def sentences(self) -> list[str]:
        """Say the result so that it cannot be misread."""
        c, p = self.comparison, _frequency(self.p_value)
        counts = (
            f"On the same {c.num} test images {self.second.name} is right and {self.first.name} wrong on "
            f"{c.only_second}; the other way round on {c.only_first}."
        )
        models = f"the accuracy of the second minus that of the first is {c.difference:+.3f}"
        by_images = f"95 % interval {c.low:+.3f} to {c.high:+.3f}"
        if c.retrained is None:
            if self.better:
                chance = f"were both equally good, so large a difference would be seen in {p}"
                return [counts, f"{self.better} is better: {models} ({by_images}); {chance}.", self._not_counted()]
            chance = f"Not decided: a difference of {c.difference:+.3f} ({by_images}) is what chance gives in {p}."
            return [counts, f"{chance} {EQUAL}", *self._needed(), self._not_counted()]
        these = (
            f"These two models: {models} ({by_images}); were they equally good on such images, so large a difference "
            f"would be seen in {_frequency(c.p_value)} (McNemar's, of this pair alone)."
        )
        again = (
            f"Trained on as many other images of the same kind and tested on others, the difference would on average "
            f"be {c.retrained.low:+.3f} to {c.retrained.high:+.3f} (95 % interval)"
        )
        if self.better:
            chance = f"were both settings equally good, so large a difference would be seen in {p}"
            return [counts, these, f"{self.better} has the better settings. {again}; {chance}."]
        chance = f"so large a difference is what chance gives in {p}"
        return [counts, these, f"Not decided whose settings are better. {again}; {chance}. {EQUAL}", *self._needed()]

    def _needed(self) -> list[str]:
        needed = self.comparison.num_needed
        if needed is None:
            return []
        if np.isinf(needed):
            return [
                "No number of test images would be enough to be sure of a difference of this size: the training images "
                "alone may have made it. More of these would help."
            ]
        return [f"About {needed:.0f} test images would be needed to be sure of a difference of this size."]

    def _not_counted(self) -> str:
        lacking = " and ".join(run.name for run in (self.first, self.second) if run.halves is None)
        return (
            f"Only the chance of the test images is counted, so this is about these two models, not their settings: "
            f"there is no half_heads.json in {lacking} (made by an older version, or its head was not solved)."
        )


EQUAL = "This does not show that both are equally good."


def _frequency(p: float) -> str:
    return f"{100 * p:.0f} of 100 such tests" if p >= 0.01 else "fewer than 1 of 100 such tests"


def compare_runs(directories: Sequence[Path]) -> list[Pair]:
    """Compare each two of the runs, with p values corrected for their number (Holm 1979).

    Raises:
        InputError: a run has no answers, or their test images or labels differ.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise InputError("compare: a run is given twice")
    runs = [read_answers(directory) for directory in directories]
    for other in runs[1:]:
        demand_same_images(runs[0], other)
    pairs = list(combinations(runs, 2))
    compared = [
        compare_answers(first.correct, second.correct, first.groups, _halves(first, second)) for first, second in pairs
    ]
    corrected = holm([comparison.headline_p for comparison in compared])
    return [Pair(*pair, comparison, p) for pair, comparison, p in zip(pairs, compared, corrected, strict=True)]


def _halves(first: Answers, second: Answers) -> list[np.ndarray]:
    """Give `compare_answers` the halves of two runs, together where they learned from the same images."""
    if first.halves is None or second.halves is None:
        return []
    if first.learned == second.learned and len(first.halves) == len(second.halves):
        return [second.halves.astype(float) - first.halves]
    return [first.halves, second.halves]


def write_comparison(pairs: Sequence[Pair], folder: Path, *, pictures: bool = True) -> Path:
    """Write `compare.json` and `compare.html`, which shows the images on which two runs differ; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"first": pair.first.name, "second": pair.second.name, **asdict(pair.comparison)}
        | {"p_value_corrected": pair.p_value, "better": pair.better}
        for pair in pairs
    ]
    write_atomically(folder / "compare.json", json.dumps(entries, indent=2) + "\n")
    runs = {answers.name: answers for pair in pairs for answers in (pair.first, pair.second)}
    table = html_table(["run", "test accuracy"], [[run.name, f"{run.accuracy:.3f}"] for run in runs.values()])
    shown = [_pair_section(pair, pictures) for pair in pairs]
    write_atomically(folder / "compare.html", static_page("Comparison of runs", section("Runs", table), *shown))
    return folder / "compare.html"


def _pair_section(pair: Pair, pictures: bool) -> str:
    first, second = pair.first, pair.second
    apart = [key for key in first.labels if first.predictions[key] != second.predictions[key]]
    cards = image_cards(
        (
            (
                first.paths[key],
                [
                    key,
                    f"label: {first.labels[key]}",
                    f"first: {first.predictions[key]}",
                    f"second: {second.predictions[key]}",
                ],
            )
            for key in apart[:MOST_IMAGES]
        ),
        pictures=pictures and first.shows_pictures and second.shows_pictures,
        pixel_range=first.pixel_range,
    )
    left_out = len(apart) - MOST_IMAGES
    note = [paragraph(f"{left_out} more images are not shown.")] if left_out > 0 else []
    title = f"{second.name} against {first.name}"
    answers = paragraph(f"Images that they answer differently: {len(apart)}")
    return section(title, *map(paragraph, pair.sentences()), answers, cards, *note)
