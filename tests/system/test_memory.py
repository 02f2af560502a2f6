"""Want of memory is told from other errors, whatever the code in between has made of it."""

from __future__ import annotations

import errno

import pytest

from tl_research.errors import InputError, MissingResourceError
from tl_research.experiment.outcome import describe_error


def wrapped(cause: Exception) -> Exception:
    """As code that reads weights reports any error."""
    try:
        try:
            raise cause
        except Exception:
            raise InputError("backbone.weights=w.h5 is damaged; download it again") from None
    except InputError as error:
        try:
            raise MissingResourceError("weights", str(error)) from None
        except MissingResourceError as missing:
            return missing


@pytest.mark.parametrize(
    "cause",
    [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("std::bad_alloc")],
)
def test_want_of_memory_is_no_missing_weights(cause: Exception) -> None:
    state, reason = describe_error(wrapped(cause))
    assert state == "failed"
    assert reason.startswith(f"out of memory: {type(cause).__name__}")
    assert describe_error(wrapped(OSError(errno.ENOENT, "no such file")))[0] == "skipped"
