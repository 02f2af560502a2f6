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
    assert "<figcaption>a/0.png<br>" in text
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
        compare_runs([one, tmp_path])
    with pytest.raises(InputError, match="a run is given twice"):
        compare_runs([one, tmp_path / "one" / "." / ".." / "one"])


def test_settings_are_judged_where_training_has_halves(tmp_path: Path) -> None:
    labels, right = "ab" * 50, "ab" * 50
    wrong = "ba" * 10 + right[20:]
    names = ("first", "second", "other", "older")
    runs = [draw_run(tmp_path / name, tmp_path, right if name == "second" else wrong, labels) for name in names]
    for run, learned in zip(runs[:3], ("x", "x", "y"), strict=True):
        lucky = ["0" * (40 if learned == "x" else n) + "1" * (60 if learned == "x" else 100 - n) for n in (20, 70) * 10]
        (run / "half_heads.json").write_text(json.dumps({"learned": learned, "right": lucky}))
    together, apart, unknown = (compare_runs([run, runs[1]])[0] for run in (runs[0], runs[2], runs[3]))
    assert together.better == str(runs[1])
    assert f"{runs[1]} has the better settings" in together.sentences()[2]
    assert apart.better is None
    assert "Not decided whose settings are better" in apart.sentences()[2]
    assert "No number of test images would be enough" in apart.sentences()[3]
    assert unknown.better == str(runs[1])
    assert (
        f"about these two models, not their settings: there is no half_heads.json in {runs[3]} ("
        in unknown.sentences()[2]
    )
    write_comparison([apart, unknown], tmp_path / "out")
    known, none = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert known["p_value"] < 0.05 < known["retrained"]["p_value"] == known["p_value_corrected"]
    assert none["retrained"] is None


@pytest.mark.parametrize("content", ["{", '{"learned": "x", "right": ["01"]}', '{"right": []}'])
def test_damaged_answers_of_halves_are_none(tmp_path: Path, content: str) -> None:
    run = draw_run(tmp_path / "run", tmp_path, "aaaaabbbbb")
    (run / "half_heads.json").write_text(content)
    other = draw_run(tmp_path / "other", tmp_path, "aaaaabbbbb")
    assert compare_runs([run, other])[0].comparison.retrained is None
