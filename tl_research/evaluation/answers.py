"""Rows of answers: what `predict` says about an image."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tl_research.errors import InputError
from tl_research.metrics.calibration import conformal_threshold, prediction_sets
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run

Kind = Literal["text", "number", "flag", "texts"]

NOT_FINITE = "the model's answer is no number"


@dataclass(frozen=True)
class AnswerOptions:
    """What to add to an answer.

    Attributes:
        top_k: the most probable classes to list, with their probabilities; 0: none.
        threshold: abstain, with an empty prediction, where the largest of the `p_` columns is below it.
        coverage: the frequency, between 0 and 1, with which sets of classes shall hold the true one.
        calibrated: divide logits by the run's temperature, for the `p_` columns and all that follows from them.
    """

    top_k: int = 0
    threshold: float | None = None
    coverage: float | None = None
    calibrated: bool = False


def begun_with(run: Run, format_: str, options: AnswerOptions) -> dict[str, Any]:
    """Describe what answers depend on: the run by its content, wherever it lies, and the options."""
    content = hashlib.sha256(run.resize.encode())
    for name in ("model.keras", "classes.json", "calibration.json", "pixel_range.json"):
        path = run.directory / name
        content.update(path.read_bytes() if path.is_file() else b"-")
    return {"run": content.hexdigest(), "format": format_, **asdict(options)}


def path_text(path: Path) -> str:
    """Write a path as text; bytes that are no text are escaped by a backslash."""
    return str(path).encode(errors="backslashreplace").decode()


class Answers:
    """Makes a row of each image's logits. Raises `InputError` for options that are out of range, or that need a
    calibration which the run has not."""

    def __init__(self, run: Run, options: AnswerOptions | None = None):
        options = options or AnswerOptions()
        self.names = run.class_names()
        self.notes: list[str] = []
        """What a reader of the answers should know, a line each."""
        self._options, self._temperature = options, float(run.calibration["temperature"])
        self._check(run)
        self._largest_score = self._conformal_threshold(run)
        top = [(f"top_{n}{end}", kind) for n in range(1, options.top_k + 1) for end, kind in _TOP]
        self.columns: dict[str, Kind] = {
            "path": "text",
            "prediction": "text",
            **{f"p_{name}": "number" for name in self.names},
            "error": "text",
            **dict(top),
            **({"abstained": "flag"} if options.threshold is not None else {}),
            **({"prediction_set": "texts"} if options.coverage is not None else {}),
            **({"temperature": "number"} if options.calibrated else {}),
        }

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return list(self.columns)

    def row(self, path: Path, logits: np.ndarray | str) -> list[Any]:
        """Make the row of an image: cells are texts, numbers, flags or lists of classes, and "" where there is none.

        `logits` is `(num_classes,)`, or why there are none.
        """
        text = path_text(path)
        if not isinstance(logits, str) and not np.isfinite(logits).all():
            logits = NOT_FINITE
        if isinstance(logits, str):
            cells: list[Any] = [text, *[""] * (len(self.columns) - 1)]
            cells[2 + len(self.names)] = logits
            return cells
        options, calibrated = self._options, softmax(logits[None] / self._temperature)
        shown = calibrated[0] if options.calibrated else softmax(logits[None])[0]
        order = np.argsort(-shown, kind="stable").tolist()
        best = order[0]
        cells = [text, self.names[best], *map(float, shown), ""]
        for number in order[: options.top_k]:
            cells += [self.names[number], float(shown[number])]
        if options.threshold is not None:
            abstained = bool(shown[best] < options.threshold)
            cells[1] = "" if abstained else cells[1]
            cells.append(abstained)
        if options.coverage is not None:
            inside = prediction_sets(calibrated, self._largest_score)[0]
            cells.append([self.names[number] for number in order if inside[number]])
        return [*cells, self._temperature] if options.calibrated else cells

    def _check(self, run: Run) -> None:
        options, count = self._options, len(self.names)
        if not 0 <= options.top_k <= count:
            raise InputError(f"--top-k {options.top_k}: give 1 to {count}, the number of the run's classes")
        if options.threshold is not None and not 0 <= options.threshold <= 1:
            raise InputError(f"--threshold {options.threshold:g}: give a probability, 0 to 1")
        if options.coverage is not None and not 0 < options.coverage < 1:
            raise InputError(f"--coverage {options.coverage:g}: give a frequency between 0 and 1, such as 0.9")
        if options.calibrated and not run.calibration["scores"]:
            raise InputError(f"--calibrated: {_NONE}")
        if options.threshold is not None and run.calibration["scores"] and not options.calibrated:
            self.notes.append("--threshold compares probabilities as they are, not calibrated; see --calibrated")

    def _conformal_threshold(self, run: Run) -> float:
        if self._options.coverage is None:
            return 0.0
        scores = np.asarray(run.calibration["scores"], float)
        if not len(scores):
            raise InputError(f"--coverage: {_NONE}")
        largest = conformal_threshold(scores, self._options.coverage)
        if np.isinf(largest):
            self.notes.append(
                f"--coverage {self._options.coverage:g}: {len(scores)} images of calibration are too few to promise "
                f"that; each set holds all classes"
            )
        return largest


_TOP: tuple[tuple[str, Kind], ...] = (("", "text"), ("_p", "number"))
_NONE = "the run has no calibration.json: it is of an older version, or had no images to calibrate on"
