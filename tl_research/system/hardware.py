"""The hardware that this process may use."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

CORES_VARIABLE = "TL_CORES"
"""The environment variable in which a cluster's launcher says how many cores a job was given. It is no key: the number
of cores does not make a job another one."""


def affinity() -> list[int]:
    """Return the numbers of the cores that this process is restricted to; none where the system (macOS) has no such
    restriction."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use, at least 1: what a launcher has given it, else its affinity and the
    quotas of its control groups, rounded up, as containers and batch systems set them. `root` has `proc` and `sys`."""
    if given := int(os.environ.get(CORES_VARIABLE, "0")):
        return given
    quotas = [_quota(folder) for folder in _control_groups(root)]
    return max(1, math.ceil(min([len(affinity()) or os.cpu_count() or 1, *quotas])))


def memory_gb(root: Path = Path("/")) -> float:
    """Look up the memory that this process may use, in units of 2**30 bytes: the machine's, or less where its control
    groups have a limit; infinite where the system does not say. `root` has `proc` and `sys`."""
    try:
        machine: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        machine = math.inf
    names = ("memory.max", "memory.limit_in_bytes")  # of versions 2 and 1
    limits = [_words(folder / name) for folder in _control_groups(root) for name in names]
    return min([machine, *(float(words[0]) for words in limits if words and words[0].isdecimal())]) / 2**30


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups (version 1: one per controller; version 2: one in all) and
    of all groups above, whose limits hold as well. In a container the group itself may not be visible."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in dict.fromkeys([controllers, *controllers.split(",")]):
            top = root / "sys/fs/cgroup" / name
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota(folder: Path) -> float:
    """Return the number of cores whose time a control group may use."""
    words = _words(folder / "cpu.max")  # version 2
    words = words or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdecimal() else math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


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
