"""Record the outcome of a run in `status.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tl_research.backend.strategy import WorkerLostError
from tl_research.errors import DivergedError, InputError, MissingResourceError
from tl_research.runs.run import Run
from tl_research.runs.status import RunState
from tl_research.system.console import only_warning
from tl_research.system.memory import memory_error
from tl_research.training.callbacks import Callback
from tl_research.training.pruning import PrunedError

INTERRUPTED = "interrupted by the user or the system"


@contextmanager
def record_outcome(run: Run) -> Iterator[None]:
    """Write the final status, however the block ends; an earlier run that stays as it is keeps its own."""
    try:
        yield
    except BaseException as error:
        interrupted = "KeyboardInterrupt" in f"{type(error).__name__} {error}"  # or a TensorFlow error around it
        if not (run.kept or run.untouched):
            run.set_status(*(("interrupted", INTERRUPTED) if interrupted else describe_error(error)))
        if interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    if not run.kept:
        run.set_status("done")


@contextmanager
def closing_callbacks(callbacks: Iterable[Callback | None], run: Run) -> Iterator[None]:
    """At the end of the block, however it ends, close the callbacks with the run's final status."""
    try:
        yield
    finally:
        for callback in filter(None, callbacks):
            with only_warning(f"callback {type(callback).__name__}"):
                callback.close(run.directory, str(run.status["state"]))


def describe_error(error: BaseException) -> tuple[RunState, str]:
    """Give state and reason for an error that ended a run."""
    if isinstance(error, PrunedError):
        return "pruned", str(error)
    if cause := memory_error(error):
        return "failed", f"out of memory: {_text(cause)}"
    if isinstance(error, MissingResourceError):
        return "skipped", f"no {error.what}: {error}"
    if isinstance(error, WorkerLostError):
        return "failed", str(error)
    if isinstance(error, InputError):
        return "diverged" if isinstance(error, DivergedError) else "failed", str(error)
    return "failed", _text(error)


def _text(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).strip(":")[:500]
