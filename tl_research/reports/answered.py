"""Read a run's answers to its test images, as arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_research.runs.reader import read_rows

Answer = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """Paths, labels `(n,)`, predicted classes `(n,)` and probabilities `(n, k)` of test images; `n` is at least 1."""

    class_names: list[str]
    paths: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    def most_sure_mistakes(self, most: int) -> list[Answer]:
        """List wrong answers, the surest first."""
        order = np.argsort(-self.probabilities.max(axis=1), kind="stable")
        return [self._answer(n) for n in order[(self.predicted != self.labels)[order]][:most]]

    def least_sure(self, most: int, shown: Collection[str] = ()) -> list[Answer]:
        """List answers, the least sure first, without those to the paths that are `shown` elsewhere."""
        order = np.argsort(self.probabilities.max(axis=1), kind="stable")
        return [self._answer(n) for n in order if self.paths[n] not in shown][:most]

    def _answer(self, n: int) -> Answer:
        label, predicted = self.labels[n], self.predicted[n]
        return {
            "path": self.paths[n],
            "label": self.class_names[label],
            "prediction": self.class_names[predicted],
            "probability": float(f"{self.probabilities[n, predicted]:.6g}"),
        }


def read_answered(directory: Path) -> Answered | None:
    """Read a run's answers from its `predictions.csv`; None where it has none to test images or is damaged."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        rows = [row for row in read_rows(directory / "predictions.csv") if row["split"] == "test"]
        if rows:
            columns = [column for column in rows[0] if column.startswith("p_")]
            names = [column.removeprefix("p_") for column in columns]
            numbers = {name: number for number, name in enumerate(names)}
            return Answered(
                names,
                [row["path"] for row in rows],
                np.array([numbers[row["label"]] for row in rows]),
                np.array([numbers[row["prediction"]] for row in rows]),
                np.array([[float(row[column]) for column in columns] for row in rows]),
            )
    return None
