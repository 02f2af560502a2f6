"""The outcome of a run: state and reason for each kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tl_research import InputError, Run
from tl_research.backend.strategy import WorkerLostError
from tl_research.errors import DivergedError, MissingResourceError
from tl_research.experiment.outcome import describe_error, record_outcome
from tl_research.training.pruning import PrunedError


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (PrunedError("others were better"), "pruned", "others were better"),
        (MissingResourceError("weights", "not there"), "skipped", "no weights: not there"),
        (WorkerLostError("a worker is gone"), "failed", "a worker is gone"),
        (InputError("no such key"), "failed", "no such key"),
        (DivergedError("head", 1, 2, 0.1), "diverged", str(DivergedError("head", 1, 2, 0.1))),
        (MemoryError(), "failed", "out of memory: MemoryError"),
        (RuntimeError("std::bad_alloc"), "failed", "out of memory: RuntimeError: std::bad_alloc"),
        (RuntimeError("two\nlines"), "failed", "RuntimeError: two lines"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_state_and_reason_of_an_error(error: Exception, state: str, reason: str) -> None:
    assert describe_error(error) == (state, reason)


def test_an_interruption_inside_another_error_is_one(tmp_path: Path) -> None:
    run = Run.claim(tmp_path)
    with pytest.raises(KeyboardInterrupt), record_outcome(run):
        raise RuntimeError("KeyboardInterrupt: in a TensorFlow function")
    assert run.status["state"] == "interrupted"


@pytest.mark.parametrize("attribute", ["kept", "untouched"])
def test_an_earlier_run_keeps_its_status(tmp_path: Path, attribute: str) -> None:
    run = Run.claim(tmp_path)
    setattr(run, attribute, True)
    with pytest.raises(InputError), record_outcome(run):
        raise InputError("changed")
    assert run.status["state"] == "running"
