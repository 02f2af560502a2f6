"""Test that flipped labels come first, as in cleanlab, and that what a person has said is remembered."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tl_research.data.ignore_list import IgnoreList, read_ignore_list
from tl_research.data.label_doubts import rank_labels
from tl_research.errors import InputError


def noisy_answers() -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Return probabilities of three classes, labels of which 10 are flipped, and which these are."""
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    logits = rng.normal(0, 1, (300, 3)) + 3 * np.eye(3)[truth]
    labels, flipped = truth.copy(), rng.choice(300, 10, replace=False)
    labels[flipped] = (truth[flipped] + 1) % 3
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels, set(flipped.tolist())


def test_flipped_labels_come_first() -> None:
    probabilities, labels, flipped = noisy_answers()
    ranked = rank_labels(probabilities, labels)
    assert len({each.index for each in ranked[:30]} & flipped) >= 8
    assert all(each.suggested != labels[each.index] for each in ranked)
    assert [each.is_confident for each in ranked] == sorted((each.is_confident for each in ranked), reverse=True)


def test_the_ranking_is_as_good_as_that_of_cleanlab() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    probabilities, labels, flipped = noisy_answers()
    theirs = np.argsort(rank.get_label_quality_scores(labels, probabilities))[:30].tolist()
    ours = [each.index for each in rank_labels(probabilities, labels)[:30]]
    assert len(set(ours) & flipped) >= len(set(theirs) & flipped)


def test_images_that_were_not_judged_are_left_out() -> None:
    probabilities, labels, _ = noisy_answers()
    probabilities[5] = np.nan
    assert 5 not in {each.index for each in rank_labels(probabilities, labels)}


def test_an_ignore_list_says_what_is_no_finding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "ignore.csv"
    table.write_text("finding,path,other\nno duplicate,a.jpg,b.jpg\nlabel is right,a.jpg,\nlabel is right,gone.jpg,\n")
    with caplog.at_level(logging.WARNING):
        found = read_ignore_list(table, {"a.jpg", "b.jpg"})
    assert found == IgnoreList(frozenset({frozenset({"a.jpg", "b.jpg"})}), frozenset({"a.jpg", "gone.jpg"}))
    assert [record.message for record in caplog.records] == [
        f"data.ignore={table}: 1 of its files are not in the data, such as gone.jpg"
    ]


@pytest.mark.parametrize(
    "text", ["path,group\na.jpg,1\n", "finding,path,other\nmaybe,a.jpg,\n", "finding,path\nno duplicate,a.jpg\n"]
)
def test_another_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ignore.csv").write_text(text)
    with pytest.raises(InputError, match=r"data\.ignore=.*; write"):
        read_ignore_list(tmp_path / "ignore.csv", {"a.jpg"})
