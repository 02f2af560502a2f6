"""The status of a run: `status.json`, and the lock that its process holds while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tl_research.system.files import write_atomically
from tl_research.system.locks import is_held

RunState = Literal["running", "done", "failed", "diverged", "skipped", "pruned", "interrupted"]

STATUS, LOCK = "status.json", ".lock"


def read_status(directory: Path) -> dict[str, Any]:
    """Read `state`, `reason`, `pid`, `host`, `started`, `ended` and `identity`. A run whose process has died reads as
    interrupted."""
    status = _stored(directory)
    if status["state"] == "running" and not _has_process(directory, status):
        status |= {"state": "interrupted", "reason": "its process ended without a word"}
    return status


def write_status(
    directory: Path, state: RunState, reason: str | None = None, identity: Mapping[str, Any] | None = None
) -> None:
    """Write `status.json`; without `identity` the stored one stays. Never raises on a full disk: that would hide the
    error that ended the run."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    before, is_running = _stored(directory), state == "running"
    status = {
        "state": state,
        "reason": reason,
        "pid": os.getpid() if is_running else before.get("pid", os.getpid()),
        "host": platform.node() if is_running else before.get("host", platform.node()),
        "started": before.get("started", now),
        "ended": None if is_running else now,
        "identity": identity or before.get("identity"),
    }
    path = directory / STATUS
    text = json.dumps(status, indent=2) + "\n"
    try:
        write_atomically(path, text)
    except OSError:  # on a full disk there is no room for a second file, but for overwriting the first
        with contextlib.suppress(OSError):
            path.write_text(text)


def _stored(directory: Path) -> dict[str, Any]:
    unknown = {"state": "interrupted", "reason": None}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return unknown | dict(json.loads((directory / STATUS).read_text()))
    return unknown


def _has_process(directory: Path, status: Mapping[str, Any]) -> bool:
    try:
        return is_held(directory / LOCK)
    except OSError:  # a run without a lock, or a file system without locks
        return status.get("host") != platform.node() or process_exists(status["pid"])


def process_exists(pid: int) -> bool:
    """Return whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
