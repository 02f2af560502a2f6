"""Answer for one photograph at a time, from the bytes of its file: which class, how sure, and where it shows."""

from __future__ import annotations

import io

import numpy as np
from pydantic import BaseModel, Field

from tl_research.backend.start import start_backend
from tl_research.data.decode import UndecodableError, decode_pixels, limit_pixels
from tl_research.errors import InputError
from tl_research.evaluation.answers import NOT_FINITE
from tl_research.evaluation.explain import Explainer, overlay
from tl_research.evaluation.predict import engine_of
from tl_research.metrics.calibration import conformal_threshold, prediction_sets
from tl_research.metrics.probabilities import softmax
from tl_research.runs.run import Run

JPEG, SCAN = b"\xff\xd8\xff", b"\xff\xda"
MOST_SCANS = 40
"""A progressive JPEG has about ten; an empty one costs 100 bytes, and a pass over all pixels."""


class Answer(BaseModel):
    """What the classifier says about a photograph."""

    prediction: str = Field(description="The most probable class")
    probability: float = Field(description="Its probability, 0 to 1, calibrated by the run's temperature")
    probabilities: dict[str, float] = Field(description="The probability of each class")
    coverage: float = Field(description="The share of images like those of training whose set holds the true class")
    prediction_set: list[str] | None = Field(description="The set, most probable first; null if the run has no scores")


class ModelFacts(BaseModel):
    """The model that answers."""

    name: str = Field(description="The name of the run's directory, or of its zip")
    class_names: list[str]
    calibrated: bool = Field(description="Whether the run has a calibration.json: a temperature, scores for sets")
    max_bytes: int = Field(description="The largest file that is taken")


class Answerer:
    """A run's classifier, loaded and warm. All methods take the bytes of an image file at the network's mercy: they
    raise `UndecodableError` if these cannot be decoded."""

    def __init__(self, run: Run, name: str, max_pixels: int):
        limit_pixels(max_pixels)
        self.name, self.class_names = name, run.class_names()
        self._temperature = float(run.calibration["temperature"])
        self._scores = np.asarray(run.calibration["scores"], float)
        try:
            explainer = Explainer(run)
        except InputError:  # no feature map
            explainer = Explainer(run, method="occlusion")
        self._size, self._resize, self._range = int(explainer.model.input_shape[1]), run.resize, run.pixel_range
        self._forward, _ = engine_of(run, explainer.model, start_backend(), batch_size=1)
        self._explain = explainer.explain_pixels
        blank = np.zeros((self._size, self._size, 3), np.uint8)
        self._forward(blank[None])
        overlay(blank, self._explain(blank, 0)[1])

    def facts(self, max_bytes: int) -> ModelFacts:
        """Say what the model is."""
        return ModelFacts(
            name=self.name, class_names=self.class_names, calibrated=len(self._scores) > 0, max_bytes=max_bytes
        )

    def answer(self, content: bytes, coverage: float) -> Answer:
        """Classify an image; its prediction set holds the true class with a frequency of `coverage`, 0 to 1. Raises
        `InputError` if the model is broken."""
        logits = self._forward(self._pixels(content)[None])
        if not np.isfinite(logits).all():
            raise InputError(NOT_FINITE)
        probabilities = softmax(logits / self._temperature)
        order = np.argsort(-probabilities[0], kind="stable")
        inside = prediction_sets(probabilities, conformal_threshold(self._scores, coverage))[0]
        return Answer(
            prediction=self.class_names[order[0]],
            probability=float(probabilities[0, order[0]]),
            probabilities=dict(zip(self.class_names, probabilities[0].tolist(), strict=True)),
            coverage=coverage,
            prediction_set=[self.class_names[n] for n in order if inside[n]] if len(self._scores) else None,
        )

    def explain(self, content: bytes, class_name: str | None) -> bytes:
        """Draw where an image speaks for a class, by default the predicted one, as PNG."""
        pixels = self._pixels(content)
        _, heat = self._explain(pixels, None if class_name is None else self.class_names.index(class_name))
        file = io.BytesIO()
        overlay(pixels, heat).save(file, "PNG")
        return file.getvalue()

    def _pixels(self, content: bytes) -> np.ndarray:
        if content.startswith(JPEG) and content.count(SCAN) > MOST_SCANS:
            raise UndecodableError(f"a JPEG of more than {MOST_SCANS} scans")
        return decode_pixels(content, self._size, self._resize, self._range)
