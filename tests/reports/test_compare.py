"""Comparisons of runs by the test images that they share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import draw_noise
from tl_research.errors import InputError
from tl_research.reports.compare import compare_runs, write_comparison


def draw_run(folder: Path, photos: Path, predictions: str, labels: str = "aaaaabbbbb", first: int = 0) -> Path:
    """Write what `compare` reads of a run; a letter is an image's label or prediction."""
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "done"}')
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "label", "prediction", "p_a", "p_b"])
        for number, (label, prediction) in enumerate(zip(labels, predictions, strict=True), first):
            writer.writerow([photos / "test" / label / f"{number}.png", "test", label, prediction, 0.5, 0.5])
    return folder


def test_a_comparison_says_who_is_better_and_shows_where(tmp_path: Path) -> None:
    photos = draw_noise(tmp_path / "photos", ("train", "test"), 5)
    first = draw_run(tmp_path / "<first>", photos, "bbbbbbbbab", "ab" * 5)
    second = draw_run(tmp_path / "second", tmp_path / "moved", "ab" * 5, "ab" * 5)
    third = draw_run(tmp_path / "third", photos, "ba" * 5, "ab" * 5)
    (pair,) = compare_runs([first, second])
    assert not pair.decided
    assert "does not show that both are equally good" in " ".join(pair.sentences())
    pairs = compare_runs([first, second, third])
    assert [(p.comparison.only_first, p.comparison.only_second, p.decided) for p in pairs] == [
        (0, 4, False),
        (6, 0, True),
        (10, 0, True),
    ]
    assert f"{second} is better" in pairs[2].sentences()[1]
    page = write_comparison(pairs, tmp_path / "out")
    text = page.read_text()
    assert "&lt;first&gt;" in text
    assert "<first>" not in text
    assert "script" not in text.split("</head>")[1]
    (*_, last) = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (last["better"], last["num"]) == (str(second), 10)


@pytest.mark.parametrize(
    ("labels", "first", "message"),
    [
        ("aaaaabbbbb", 1, r"not those of .* 2 of .* such as a/0\.png"),
        ("aaaaabbbba", 0, r"1 of .* are not in"),
    ],
)
def test_runs_with_other_test_images_are_refused(tmp_path: Path, labels: str, first: int, message: str) -> None:
    one = draw_run(tmp_path / "one", tmp_path, "aaaaabbbbb")
    other = draw_run(tmp_path / "other", tmp_path, "aaaaabbbbb", labels, first)
    with pytest.raises(InputError, match=message) as refused:
        compare_runs([one, other])
    assert "\n" not in str(refused.value)


def test_a_run_without_answers_is_named(tmp_path: Path) -> None:
    one = draw_run(tmp_path / "one", tmp_path, "aaaaabbbbb")
    (one / "predictions.csv").unlink()
    with pytest.raises(InputError, match=r"one: no predictions\.csv; the run's status is 'done'"):
        compare_runs([one, one])
