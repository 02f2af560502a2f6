"""Show which parts of an image speak for its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tl_research.backend.inference import class_gradients, compile_network
from tl_research.data.decode import UndecodableError, read_pixels
from tl_research.errors import InputError
from tl_research.features.engines import BATCH
from tl_research.metrics.probabilities import softmax
from tl_research.models.blocks import split_at_last_map
from tl_research.models.combined import parts_of
from tl_research.models.ensemble import ensemble_members
from tl_research.runs.run import Run

if TYPE_CHECKING:
    import keras

GRID = 8
"""Positions of the occluding square along each side; the square is a quarter of the image wide."""


@dataclass(frozen=True)
class Explanation:
    """A class and what each place of the network's input adds to it, or why the file could not be read.

    `heat` is float32 `(h, w)`, coarser than `pixels`, uint8 `(s, s, 3)`: positive where the image speaks for the class.
    With `map` its sum is the class's logit, up to the head's bias, where the head is linear on averaged features (in an
    ensemble the mean of its members' logits); with `occlusion` it is the fall of the logit where a grey square covers
    the place.
    """

    path: Path
    error: str = ""
    explained: str = ""
    prediction: str = ""
    probability: float = 0.0
    logit: float = 0.0
    heat: np.ndarray | None = None
    pixels: np.ndarray | None = None


class Explainer:
    """Explains the answers of a run's classifier, `model`; `explain_pixels` does it for pixels at the network's size.
    Raises `InputError` if the network has no feature map, or the run no such class."""

    def __init__(self, run: Run, class_name: str | None = None, method: str = "map"):
        self._names = run.class_names()
        if class_name is not None and class_name not in self._names:
            raise InputError(f"--class {class_name}: the run's classes are {', '.join(self._names)}")
        self._class = None if class_name is None else self._names.index(class_name)
        self.model, self._resize = run.model(), run.resize
        self._pixel_range = run.pixel_range
        self._temperature = float(run.calibration["temperature"])
        self._size = int(self.model.input_shape[1])
        self.explain_pixels = _by_map(self.model, run.directory) if method == "map" else _by_occlusion(self.model)

    def explain(self, paths: Sequence[Path]) -> Iterator[Explanation]:
        """Explain one image after the other: the predicted class, or the one asked for."""
        for path in paths:
            try:
                pixels = read_pixels(path, self._size, self._resize, self._pixel_range)
            except UndecodableError as error:
                yield Explanation(path, error=str(error))
                continue
            logits, heat = self.explain_pixels(pixels, self._class)
            number = int(logits.argmax()) if self._class is None else self._class
            yield Explanation(
                path,
                explained=self._names[number],
                prediction=self._names[int(logits.argmax())],
                probability=float(softmax(logits[None] / self._temperature)[0, number]),
                logit=float(logits[number]),
                heat=heat,
                pixels=pixels,
            )


Explain = Callable[[np.ndarray, int | None], tuple[np.ndarray, np.ndarray]]
"""Pixels and a class, or None for the predicted -> logits `(k,)` and heat `(h, w)`."""


def _by_map(model: keras.Model, directory: Path, resize: keras.Model | None = None) -> Explain:
    """Weight the last feature map by the class's gradient, averaged over places (Grad-CAM without its ReLU, Selvaraju
    et al. 2017, arXiv 1610.02391). For a linear head on averaged features that is the exact class activation map (Zhou
    et al. 2016, arXiv 1512.04150). The maps of a combined network's parts are added; that of an ensemble is the mean of
    its members' maps."""
    if members := ensemble_members(model):
        return _by_mean_map(model, [_by_map(member, directory, resize) for resize, member in members])
    import keras

    try:
        head = model.get_layer("head")
        splits = [split_at_last_map(part) for part in parts_of(model.get_layer("backbone"))]
    except ValueError:
        raise InputError(f"{directory}: its network has no feature map; give --method occlusion") from None
    prefixes = [keras.Sequential([resize, prefix]) if resize else prefix for prefix, _ in splits]
    forwards = [compile_network(prefix, 1) for prefix in prefixes]

    def explain(pixels: np.ndarray, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        maps = [forward(pixels[None]) for forward in forwards]
        features = [tail(each, training=False) for each, (_, tail) in zip(maps, splits, strict=True)]
        logits = np.asarray(head(keras.ops.concatenate(features, axis=-1), training=False))[0]
        chosen = np.array([logits.argmax() if number is None else number])
        heats = []
        for part, (_, tail) in enumerate(splits):

            def answer(x: Any, part: int = part, tail: keras.Model = tail) -> Any:
                row = [*features[:part], tail(x, training=False), *features[part + 1 :]]
                return head(keras.ops.concatenate(row, axis=-1), training=False)

            gradient = class_gradients(answer, maps[part], chosen)
            heats.append((gradient.mean(axis=(1, 2), keepdims=True) * maps[part]).sum(axis=3)[0])
        return logits, add_maps(heats)

    return explain


def _by_mean_map(model: keras.Model, members: Sequence[Explain]) -> Explain:
    def explain(pixels: np.ndarray, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        logits = np.asarray(model(pixels[None].astype(np.float32), training=False))[0]
        chosen = int(logits.argmax()) if number is None else number
        return logits, add_maps([member(pixels, chosen)[1] for member in members]) / len(members)

    return explain


def add_maps(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Add maps `(h, w)` of one image on the finest grid among them; each keeps its sum."""
    finest = max(maps, key=np.size)
    total = np.zeros(finest.shape, np.float32)
    for heat in maps:
        image = Image.fromarray(heat.astype(np.float32)).resize(finest.shape[::-1], Image.Resampling.BILINEAR)
        fine = np.asarray(image) * (heat.size / finest.size)
        total += fine + (heat.sum() - fine.sum()) / fine.size
    return total


def _by_occlusion(model: keras.Model) -> Explain:
    """Cover one square after the other (Zeiler and Fergus 2014, arXiv 1311.2901); needs no gradient."""
    size = int(model.input_shape[1])
    side, forward = max(size // 4, 1), compile_network(model, BATCH)
    centres = ((np.arange(GRID) + 0.5) * size / GRID).round().astype(int)
    corners = [(row, column) for row in centres for column in centres]

    def run(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % BATCH, axis=0)])
        return np.concatenate([forward(padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)])[: len(images)]

    def explain(pixels: np.ndarray, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        covered = np.repeat(pixels[None], len(corners) + 1, axis=0)
        grey = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
        for image, (row, column) in zip(covered, corners, strict=False):
            image[
                max(row - side // 2, 0) : row + side // 2 + 1, max(column - side // 2, 0) : column + side // 2 + 1
            ] = grey
        logits = run(covered)
        chosen = int(logits[-1].argmax()) if number is None else number
        return logits[-1], (logits[-1, chosen] - logits[:-1, chosen]).reshape(GRID, GRID).astype(np.float32)

    return explain


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Lay heat over an image: what speaks for the class is warm, everything else fades to grey."""
    from matplotlib import colormaps

    side = max(pixels.shape[0], 224)
    positive = np.maximum(heat, 0) / max(float(heat.max()), 1e-12)
    smooth = np.asarray(Image.fromarray(positive.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
    strength = np.clip(smooth, 0, 1)[..., None]
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L").convert("RGB"), float)
    colour = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    return Image.fromarray((grey * (1 - 0.6 * strength) + colour * 0.6 * strength).clip(0, 255).astype(np.uint8))
