"""Divide the cores and GPUs of the machine among jobs that run in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_research.system.hardware import CORES_VARIABLE, affinity, cores


@dataclass(frozen=True)
class Slot:
    """Cores and GPUs for one job at a time; without GPUs the job's environment stays as it is. Where a process cannot
    be bound to cores (macOS), or may use the time of fewer than it sees (containers), a job only counts its `threads`.
    """

    cores: frozenset[int]
    gpus: tuple[str, ...] = ()
    threads: int = 0

    @classmethod
    def of_machine(cls, count: int) -> list[Slot]:
        """Divide the machine into `count` equal parts; parts share cores or GPUs where there are fewer than `count`."""
        number, gpus = cores(), visible_gpus()
        bound = affinity() if number >= len(affinity()) else []
        parts = [(frozenset(_part(bound, i, count)), tuple(_part(gpus, i, count))) for i in range(count)]
        return [cls(*part, threads=max(1, number // count)) for part in parts]

    def enter(self) -> None:
        """Restrict this process to the slot. Call it before TensorFlow first lists devices."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        else:
            os.environ[CORES_VARIABLE] = str(self.threads)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # it may be shared


def _part(things: Sequence[Any], number: int, count: int) -> list[Any]:
    size = len(things) // count
    if size:
        return list(things[number * size : (number + 1) * size])
    return [things[number % len(things)]] if things else []


def visible_gpus() -> list[str]:
    """Return the GPUs that TensorFlow would see, without importing it: it would allocate them in this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
