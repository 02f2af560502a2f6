"""What this process may use of the machine."""

from __future__ import annotations

import os

CORES_VARIABLE = "TL_CORES"
"""The environment variable in which a cluster's launcher says how many cores a job was given. It is no key: on how many
a job runs does not make it another one."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
