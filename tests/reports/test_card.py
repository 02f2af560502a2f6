"""The model card: true to its run, and whole whatever the data is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.conftest import ROOT, draw_tree
from tests.experiment.test_experiment import run
from tests.reports.test_leaderboard import draw_run
from tl_research.commands.card import card_command
from tl_research.errors import InputError
from tl_research.reports.card import limits, model_card, plain_markdown
from tl_research.runs.run import Run, as_csv
from tl_research.system.console import printable

HOSTILE = [
    "a_$x_y_z$",
    "a|b",
    "[x](y)",
    "---",
    "热狗",
    "x\udcff",
    "<b>",
    "`c``d",
    "# e",
    "http://f.g @h",
    "*i*",
    "k: &l",
]


def front_matter(card: str) -> dict[str, Any]:
    _, text, rest = card.split("---\n", 2)
    assert rest.startswith("\n# ")
    return dict(yaml.safe_load(text))


def cells(card: str) -> list[list[str]]:
    """The rows of all tables, as a reader sees them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(card.split("---\n", 2)[2]):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4:
            assert {child.type for child in token.children or ()} <= {"text", "text_special", "code_inline"}
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


def draw_card(folder: Path, names: list[str], check: dict[str, Any] | None = None, **metrics: Any) -> Run:
    draw_run(folder, ["head=mlp"], test_accuracy=0.9, test_accuracy_low=0.8, test_accuracy_high=0.95, **metrics)
    counts = {split: dict.fromkeys(names, 40) for split in ("train", "val", "test")}
    known = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({"num_train": 40, "num_test": 400} | known))
    (folder / "data_check.json").write_text(json.dumps({"images": counts} | (check or {})))
    (folder / "classes.json").write_text(json.dumps(names))
    lines = [["x.jpg", "test", name, name, *(float(name == other) for other in names)] for name in names]
    header = ["path", "split", "label", "prediction", *(f"p_{name}" for name in names)]
    (folder / "predictions.csv").write_text(as_csv(header, lines), encoding="utf-8", errors="backslashreplace")
    return Run.open(folder)


def test_a_run_leaves_a_card_that_the_hub_reads(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours, "callbacks=none")
    card = (tmp_path / "run" / "model_card.md").read_text()
    known = front_matter(card)
    assert (known["license"], known["library_name"], known["pipeline_tag"]) == (
        "unknown",
        "keras",
        "image-classification",
    )
    (entry,) = known["model-index"]
    (result,) = entry["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": done.metrics["test_accuracy"], "name": "Test accuracy"}
    rows = cells(card)
    assert ["blue", "10", "2", "6"] in rows
    assert ["all", "20", "4", "12"] in rows
    assert any(row[:2] == ["red", "6"] and "(" in row[3] for row in rows), "recall with its interval"
    for fact in ("Temperature ", "Prediction sets", "of tiny: none needed", "squash", "Few images"):
        assert fact in card


def test_names_of_classes_break_neither_yaml_nor_tables(tmp_path: Path) -> None:
    card = model_card(draw_card(tmp_path / "a_$b_c$ --- [d](e)", HOSTILE))
    assert front_matter(card)["model-index"][0]["name"] == "a_$b_c$ --- [d](e)"
    assert [row[0] for row in cells(card) if len(row) == 4][1:-1] == [printable(name) for name in HOSTILE]
    assert [row[0] for row in cells(card) if len(row) == 5][1:] == [printable(name) for name in HOSTILE]
    assert r"\$x\_y\_z\$" in plain_markdown(HOSTILE[0])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"check": {"images": {"train": {"a": 90, "b": 40}}}}, "not balanced: 90 training images of a, 40 of b"),
        ({"check": {"images": {"train": {"a": 9, "b": 10}}}}, "learned a from 9"),
        ({"check": {"num_leaks": 2}}, "2 set(s) of equal images lie in more than one split"),
        ({"num_test": 20}, "With 20 test images"),
        ({"test_majority": 0.85}, "not clearly better"),
        ({"random_weights": True}, "random ones replaced them"),
    ],
)
def test_limits_come_from_the_facts(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    assert words not in " ".join(limits(draw_card(tmp_path / "good", ["a", "b"])))
    assert words in " ".join(limits(draw_card(tmp_path / "bad", ["a", "b"], **facts)))


def test_an_older_run_gets_a_card_and_one_without_results_none(tmp_path: Path) -> None:
    card_command(ROOT / "tests" / "fixtures" / "aeace94" / "finished", tmp_path / "card.md")
    assert "accuracy" in (tmp_path / "card.md").read_text()
    draw_run(tmp_path / "run", [], "failed", "InputError: no weights")
    with pytest.raises(InputError, match=r"no results in its metrics\.json; its status is 'failed'"):
        card_command(tmp_path / "run")


def test_a_card_that_fails_does_not_fail_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tl_research.reports.card.limits", lambda run: 1 / 0)
    photos = draw_tree(tmp_path / "photos", {"train/blue": 8, "train/red": 8})
    assert run(tmp_path / "run", photos, "callbacks=none").status["state"] == "done"
    assert "model_card.md: not shown, the run goes on" in caplog.text
