"""Interruptions by Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib

import pytest

from tl_research.system.interruption import interrupt
from tl_research.system.progress import track


def test_an_interruption_that_a_library_drops_is_not_lost() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        list(track("ab", "reading"))
    assert list(track("ab", "reading")) == ["a", "b"]
