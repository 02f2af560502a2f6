"""Interruptions by Ctrl-C and SIGTERM, none of which may be lost."""

from __future__ import annotations

import threading

_awaited = False


def interrupt(*_: object) -> None:
    """Raise `KeyboardInterrupt`, as a handler of signals.

    Within a destructor, or a callback of a library's C++ code, Python drops the exception, and work would go on to its
    end: `raise_if_interrupted` then raises it again.
    """
    global _awaited
    _awaited = True
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raise `KeyboardInterrupt` in the main thread if there was a signal since the last call. Long work calls it."""
    global _awaited
    if _awaited and threading.current_thread() is threading.main_thread():
        _awaited = False
        raise KeyboardInterrupt
