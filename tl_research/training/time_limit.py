"""Estimate from the first updates of an epoch whether there is time for what is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any


class TooSlowError(Exception):
    """What is planned would end after the limit."""


def in_time(
    batches: Callable[[int, int], Any], count: int, epochs: float, limit: float
) -> Callable[[int, int], Iterator[Any]]:
    """Return the batches of an epoch, `batches(epoch, skip)`, `count` of them, which raise `TooSlowError` once so many
    epochs as long as the current one would end after `limit` (`time.monotonic`)."""

    def timed(epoch: int, skip: int) -> Iterator[Any]:
        second = 0.0
        with closing(batches(epoch, skip)) as source:
            for number, batch in enumerate(source):
                now = time.monotonic()
                second = now if number == 1 else second  # the first update is compiled
                seconds = (now - second) / (number - 1) * count if number > 2 else 0.0
                if now + epochs * seconds > limit:
                    raise TooSlowError(f"trainer.time_limit: an epoch would take {seconds / 60:.1f} minutes")
                yield batch

    return timed
