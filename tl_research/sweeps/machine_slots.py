"""The machine divided among the jobs that run at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Slot:
    """The part of the machine that one job at a time may use; no GPUs means that it is not told about any."""

    cores: frozenset[int]
    gpus: tuple[str, ...] = ()

    @classmethod
    def of_machine(cls, count: int) -> list[Slot]:
        """`count` equal parts. What cannot be divided is shared."""
        cores, gpus = sorted(os.sched_getaffinity(0)), visible_gpus()
        return [cls(frozenset(_part(cores, i, count)), tuple(_part(gpus, i, count))) for i in range(count)]

    def enter(self) -> None:
        """Keeps this process to the slot, before TensorFlow first lists devices."""
        os.sched_setaffinity(0, self.cores)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # it may be shared


def _part(things: Sequence[Any], number: int, count: int) -> list[Any]:
    size = len(things) // count
    if size:
        return list(things[number * size : (number + 1) * size])
    return [things[number % len(things)]] if things else []


def visible_gpus() -> list[str]:
    """The GPUs that TensorFlow would see, found without it: it would take hold of them in this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
