"""The hardware that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CORES_VARIABLE = "TL_CORES"
"""The environment variable in which a cluster's launcher says how many cores a job was given. It is no key: the number
of cores does not make a job another one."""


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Look up the machine's memory, in units of 2**30 bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def processor() -> str:
    """Name the CPU and its vector instructions: kernels are chosen by them."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    except (OSError, ValueError):
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, value in facts.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    vector = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "asimd", "sve", "bf16"))]
    return " ".join([platform.machine(), fields.get("model name", platform.processor()), *sorted(vector)])
