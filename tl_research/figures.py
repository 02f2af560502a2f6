"""Pictures of results, as pixels: uint8 `(height, width, 3)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tl_research.probe import softmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Counts, each row a true class, shaded by the row's share."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay
    from sklearn.metrics import confusion_matrix as count

    side = min(max(4.0, 0.6 * len(class_names) + 2), 24)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    counts = count(labels, predicted, labels=np.arange(len(class_names)))
    display = ConfusionMatrixDisplay(counts, display_labels=list(class_names))
    display.plot(
        ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", include_values=len(class_names) <= 30
    )
    return _pixels(figure)


def predictions(
    samples: Sequence[tuple[np.ndarray, int, np.ndarray]], class_names: Sequence[str], columns: int = 4
) -> np.ndarray:
    """A page of images with the answer and its probability; a wrong one is red and says what it should have been."""
    from matplotlib.figure import Figure

    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.75 * rows), dpi=90)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Matplotlib's own layout engines take longer than all the rest of the page.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.4 / (2.75 * rows), wspace=0.06, hspace=0.25)
    for axis in axes:
        axis.axis("off")
    for axis, (pixels, label, logits) in zip(axes, samples, strict=False):
        probabilities = softmax(logits[None])[0]
        answer = int(probabilities.argmax())
        title = f"{class_names[answer]} {probabilities[answer]:.0%}"
        if answer != label:
            title += f"\n(is {class_names[label]})"
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9, color="tab:green" if answer == label else "tab:red")
    return _pixels(figure)


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
