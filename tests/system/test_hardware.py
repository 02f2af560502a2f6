"""The cores and the memory that a process may use: the machine's, or less in a container or a batch job."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tl_research.sweeps.machine_slots import Slot
from tl_research.sweeps.process_pool import ProcessPool
from tl_research.system.hardware import CORES_VARIABLE, cores, memory_gb

GB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores and 256 GB."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256 * GB // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv(CORES_VARIABLE, raising=False)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {}, (64, 256)),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, (64, 256)),
        ("0::/", {"cpu.max": "250000 100000", "memory.max": str(8 * GB)}, (3, 8)),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/memory.max": str(4 * GB), "memory.max": str(2 * GB)}, (1, 2)),
        ("0::/not/visible", {"cpu.max": "200000 100000"}, (2, 256)),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job\n0::/",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/job/memory.limit_in_bytes": str(16 * GB),
            },
            (4, 16),
        ),
        ("1:cpu:/x", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (64, 256)),
    ],
)
def test_limits_of_control_groups_count(
    tmp_path: Path, group: str, files: dict[str, str], expected: tuple[int, float]
) -> None:
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert (cores(tmp_path), memory_gb(tmp_path)) == expected


def test_macos_divides_threads_and_binds_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("tl_research.sweeps.process_pool.visible_gpus", list)
    monkeypatch.setenv(CORES_VARIABLE, "0")
    assert (cores(tmp_path), memory_gb(tmp_path)) == (8, math.inf)
    slots = Slot.of_machine(2)
    assert [(slot.cores, slot.threads) for slot in slots] == [(frozenset(), 4)] * 2
    assert ProcessPool().num_parallel(1) == 1
    slots[0].enter()
    assert cores() == 4
