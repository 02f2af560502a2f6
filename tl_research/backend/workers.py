"""The machines that `TF_CONFIG` names for `trainer.distribution=multi_worker`. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from typing import Any

from tl_research.errors import InputError

log = logging.getLogger(__name__)

MOST_WAITING = 1800.0
"""Seconds for all workers to come: each has read its images by then."""


def check_cluster(name: str, *, sweep: bool) -> None:
    """Whether a run can be divided so.

    Raises:
        InputError: `multi_worker` without a good `TF_CONFIG`, or in a sweep, whose jobs each worker would choose alone.
    """
    if name != "multi_worker":
        return
    if sweep:
        raise InputError("trainer.distribution=multi_worker is for one run at a time; leave out -m")
    cluster_members()


def cluster_members() -> tuple[list[str], int]:
    """Addresses of all workers, and which of them this process is."""
    told = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(told)
        workers, task = config["cluster"]["worker"], config["task"]
        index = int(task["index"])
        alone = set(config["cluster"]) == {"worker"} and task["type"] == "worker"  # no chief, no parameter server
        if alone and isinstance(workers, list) and 0 <= index < len(workers) and all(map(_is_address, workers)):
            return workers, index
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(
        "trainer.distribution=multi_worker: each worker needs the environment variable TF_CONFIG, such as "
        '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
        + (f"; it is {told[:200]}" if told else "")
    )


def _is_address(text: Any) -> bool:
    found = re.fullmatch(r"\S+:(\d+)", text) if isinstance(text, str) else None
    return found is not None and int(found[1]) < 1 << 16


def worker_rank() -> int:
    """Which of the workers this process is; 0 owns the run directory.

    Raises:
        InputError: `TF_CONFIG` is not there, or does not say so.
    """
    return cluster_members()[1]


def wait_for_workers() -> None:
    """Waits for the others. TensorFlow would do so by itself, an hour, deaf to Ctrl-C, and not say for whom.

    Raises:
        InputError: some did not come, or our own address cannot be taken.
    """
    workers, index = cluster_members()
    missing = [address for number, address in enumerate(workers) if number != index]
    port = int(workers[index].rpartition(":")[2])
    log.info("worker %d of %d, waiting for %s", index, len(workers), ", ".join(missing) or "nobody")
    end = time.monotonic() + MOST_WAITING
    try:
        # Who connects sees that we are here. TensorFlow takes the port next, and is seen there by those who come late.
        with socket.create_server(("", port)):
            while missing := [address for address in missing if not _is_there(address)]:
                if time.monotonic() > end:
                    raise InputError(
                        f"trainer.distribution=multi_worker: no sign of {', '.join(missing)} within "
                        f"{MOST_WAITING / 60:.0f} minutes; start the same command on each, with its own TF_CONFIG"
                    )
                time.sleep(0.5)
    except OSError as error:
        raise InputError(
            f"TF_CONFIG: worker {index} cannot listen at {workers[index]} ({error.strerror}); give another port"
        ) from None


def _is_there(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
        return connection.getsockname() != connection.getpeername()  # a port that is free may be given to us ourselves
    return False
