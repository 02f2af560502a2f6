"""Remember duplicates that a check has found, by the content of the images, for later runs on the same data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tl_research.data.datamodule import DataModule
from tl_research.system.files import write_atomically


def remember_duplicates(folder: Path | None, dataset: str, groups: Iterable[Sequence[str]]) -> None:
    """Write a line of digests, in hexadecimal, for each group of duplicates in a data set, in place of those of an
    earlier check. Without a folder, or where it cannot be written, nothing is remembered."""
    with contextlib.suppress(OSError):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(_file(folder, dataset), "".join(f"{','.join(group)}\n" for group in groups))


def leaking(folder: Path | None, data: DataModule) -> np.ndarray:
    """Return which test images, in order, have a duplicate among the training or validation images by the last check
    of this data set, `(n,)`; none if there was no check."""
    test, learned = data.indices("test"), data.indices("train", "val")
    groups: list[set[str]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if folder is not None:
            groups = [set(line.split(",")) for line in _file(folder, data.dataset).read_text("ascii").splitlines()]
    seen = {data.digests[i].hex() for i in learned.tolist()}
    spoilt = set[str]().union(*(group for group in groups if group & seen))
    return np.array([data.digests[i].hex() in spoilt for i in test.tolist()], bool)


def _file(folder: Path, dataset: str) -> Path:
    return folder / f"duplicates-{dataset}.csv"
