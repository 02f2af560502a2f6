"""What a run says of unbalanced data: the majority's accuracy, recalls, and warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import draw_tree
from tl_research import compose
from tl_research.experiment.summary import warn_of_the_majority


def test_unbalanced_data_are_shown_as_such(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw_tree(tmp_path / "photos", {"blue": 40, "red": 10})
    run = compose(["backbone=tiny", "data=folder", f"data.root={root}", "callbacks=none"]).run(tmp_path / "run")
    assert run.metrics["test_majority"] == pytest.approx(0.8)
    shown = capfd.readouterr().out
    assert "majority" in shown
    assert "recall" in shown
    assert "fewer than 5 validation images of a class: red (2)" in shown
    other = compose(
        ["backbone=tiny", "data=folder", f"data.root={root}", "callbacks=none", "data.fraction=0.5", "seed=3"]
    )
    assert other.run(tmp_path / "other").metrics["dataset"] == run.metrics["dataset"]


@pytest.mark.parametrize(("low", "poor"), [(0.8, True), (0.7, True), (0.81, False)])
def test_an_accuracy_like_the_majoritys_is_warned_of(low: float, poor: bool, caplog: pytest.LogCaptureFixture) -> None:
    good = {"val_accuracy": 1.0, "val_accuracy_low": 0.9, "val_majority": 0.8}
    warn_of_the_majority({**good, "test_accuracy": 0.9, "test_accuracy_low": low, "test_majority": 0.8})
    assert ("commonest class: test 0.900 (0.800)" in caplog.text) is poor
