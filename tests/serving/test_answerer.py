"""What the server asks for one photograph: the run's own answer, calibrated. Bombs are not decoded."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tl_research import Run
from tl_research.data.decode import UndecodableError
from tl_research.evaluation.predict import predict_logits
from tl_research.metrics.probabilities import softmax
from tl_research.serving.answerer import Answerer

OLDER = ROOT / "tests" / "fixtures" / "aeace94"
PHOTO = OLDER / "images" / "test" / "blue" / "0.png"


def calibrated_run(folder: Path) -> Path:
    """Copy a run and calibrate it: of two classes that are both about as probable, both belong to a set."""
    shutil.copytree(OLDER / "finished", folder)
    scores = {"temperature": 2.0, "scores": np.linspace(0, 1, 50).tolist()}
    (folder / "calibration.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.open(calibrated_run(tmp_path_factory.mktemp("answerer") / "run"))


@pytest.fixture(scope="module")
def answerer(run: Run) -> Iterator[Answerer]:
    before = Image.MAX_IMAGE_PIXELS
    yield Answerer(run, "run", max_pixels=10_000)
    Image.MAX_IMAGE_PIXELS = before


def test_the_answer_is_the_runs_calibrated(run: Run, answerer: Answerer) -> None:
    (logits,) = predict_logits(run, [PHOTO])
    assert not isinstance(logits, str)
    answer = answerer.answer(PHOTO.read_bytes(), 0.9)
    expected = dict(zip(run.class_names(), softmax(logits[None] / 2)[0], strict=True))
    assert answer.probabilities == pytest.approx(expected, abs=1e-5)
    assert answer.probability == max(answer.probabilities.values()) == answer.probabilities[answer.prediction]
    assert answer.prediction_set is not None
    assert answer.prediction_set[0] == answer.prediction
    assert set(answerer.answer(PHOTO.read_bytes(), 0.999).prediction_set or ()) == set(run.class_names())


def test_a_run_without_scores_gives_no_set() -> None:
    answerer = Answerer(Run.open(OLDER / "finished"), "run", max_pixels=10_000)
    assert answerer.answer(PHOTO.read_bytes(), 0.9).prediction_set is None
    assert not answerer.facts(1).calibrated


def test_the_map_is_a_picture_of_a_class(answerer: Answerer) -> None:
    pictures = [answerer.explain(PHOTO.read_bytes(), name) for name in (None, "blue", "red")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[1] != pictures[2]
    assert pictures[0] in pictures[1:]


def jpeg_of_scans(count: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * count + content[-2:]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(png(200, 100), "more than 0 megapixels"), (jpeg_of_scans(100), "more than 40 scans"), (b"text", "not an image")],
)
def test_what_is_no_photograph_is_named(answerer: Answerer, content: bytes, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        answerer.answer(content, 0.9)
    assert answerer.answer(jpeg_of_scans(1), 0.9).probabilities
