"""Figures of results, as pixels: uint8 `(height, width, 3)`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tl_research.metrics.probabilities import softmax
from tl_research.system.console import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 24
FONT = "DejaVu Sans"
"""Matplotlib's own."""


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Give each class a name that the fonts of this machine can draw: its own, or `#` and its number if they lack a
    letter. Bytes that are no text and control characters are escaped."""
    names = [printable(name) for name in class_names]
    return [name if _families(name) else f"#{number}" for number, name in enumerate(names)]


@cache
def _families(text: str) -> list[str]:
    """List the font families that have all letters of a text together; empty if there are none."""
    from matplotlib import font_manager

    lacking, families = {ord(letter) for letter in text if letter != "\n"}, []
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.weight == 400}
    for family in sorted(fonts, key=lambda family: (family != FONT, family)):
        if lacking and not family.startswith("Last Resort"):  # which has a box for every letter there is
            with contextlib.suppress(OSError, RuntimeError):  # not a font of outlines, such as one of coloured emoji
                known = lacking & font_manager.get_font(fonts[family]).get_charmap().keys()
                families += [family] if known else []
                lacking -= known
    return [] if lacking else families


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw the counts, one row for each true class, shaded by the share of the row."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay
    from sklearn.metrics import confusion_matrix as count

    side = min(max(4.0, 0.6 * len(class_names) + 2), 24)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    counts = count(labels, predicted, labels=np.arange(len(class_names)))
    display = ConfusionMatrixDisplay(counts, display_labels=drawable_names(class_names))
    display.plot(
        ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", include_values=len(class_names) <= 30
    )
    return _pixels(_with_literal_names(figure))


def predictions(
    samples: Sequence[tuple[np.ndarray, int, np.ndarray]], class_names: Sequence[str], columns: int = 4
) -> np.ndarray:
    """Draw a page of images with the predicted class and its probability; a wrong one is red, with the true class."""
    titled, class_names = [], drawable_names(class_names)
    for pixels, label, logits in samples:
        probabilities = softmax(logits[None])[0]
        prediction = int(probabilities.argmax())
        title = f"{_short(class_names[prediction])} {probabilities[prediction]:.0%}"
        if prediction != label:
            title += f"\n(is {_short(class_names[label])})"
        titled.append((pixels, title, "tab:green" if prediction == label else "tab:red"))
    return _page(titled, columns)


def batch(
    pixels: np.ndarray, targets: np.ndarray, class_names: Sequence[str], columns: int = 4, most: int = 16
) -> np.ndarray:
    """Draw a page of the first `most` images of a training batch, uint8 `(b, s, s, 3)`, as the network sees them, each
    with its classes and, if mixed, their shares: targets `(b, k)`."""
    titled, class_names = [], drawable_names(class_names)
    for image, target in zip(pixels[:most], targets[:most], strict=True):
        classes = [k for k in np.argsort(-target, kind="stable") if target[k] >= 0.005][:2]
        shares = [_short(class_names[k]) + (f" {target[k]:.0%}" if len(classes) > 1 else "") for k in classes]
        titled.append((image, "\n".join(shares), "black"))
    return _page(titled, columns)


def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, float]]], temperature: float) -> np.ndarray:
    """Draw accuracy over confidence, `plain` and `calibrated` as `metrics.calibration.reliability` gives them; the area
    of a dot says how many images it stands for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), dpi=110)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="0.6", label="as sure as it is right")
    labels = {"plain": "as it is", "calibrated": f"with the temperature {temperature:.2f}"}
    for (kind, label), colour in zip(labels.items(), ("tab:orange", "tab:blue"), strict=True):
        points = bins[kind]
        total = sum(point["num"] for point in points)
        x, y = [point["confidence"] for point in points], [point["accuracy"] for point in points]
        axes.plot(x, y, "-", color=colour, linewidth=1, label=label)
        axes.scatter(x, y, [10 + 300 * point["num"] / total for point in points], color=colour, alpha=0.6)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend()
    return _pixels(figure)


def learning_rates(
    title: str, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float
) -> np.ndarray:
    """Plot the losses of a learning-rate range test over the rate, raw and smoothed, and the suggested rate. Single
    losses far from all averages are outside the frame."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    raw, mean = (np.maximum(values, 1e-12) for values in (losses, smoothed))  # 0 has no logarithm
    axes.plot(rates, raw, ".", color="0.65", markersize=4, label="each update")
    axes.plot(rates, mean, color="tab:blue", linewidth=2, label="smoothed")
    axes.axvline(chosen, color="tab:green", linestyle="--", label=f"suggested: {chosen:.2g}")
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_title(title, parse_math=False)
    low, high = mean.min() / 2, 2 * mean.max()
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter("{x:g}")
    if high < 100 * low:  # the range may hold one power of ten, or none
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    return _pixels(figure)


def _page(titled: Sequence[tuple[np.ndarray, str, str]], columns: int) -> np.ndarray:
    """Draw images in rows, each under a coloured title of at most two lines."""
    from matplotlib.figure import Figure

    rows = -(-len(titled) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.75 * rows), dpi=90)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Matplotlib's layout engines take longer than the rest of the page.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.4 / (2.75 * rows), wspace=0.06, hspace=0.25)
    for axis in axes[len(titled) :]:
        axis.axis("off")
    for axis, (pixels, title, colour) in zip(axes, titled, strict=False):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9, color=colour)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.7")  # a white image must stand out from the page
    return _pixels(_with_literal_names(figure))


def _short(name: str) -> str:
    """Shorten a class name to fit over an image, beside a number."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _with_literal_names(figure: Figure) -> Figure:
    """Make a figure draw its texts to the letter, in fonts that have them: `a_$x$` is a name, not a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_fontfamily(_families(text.get_text()) or FONT)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
