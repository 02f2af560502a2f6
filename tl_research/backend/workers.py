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
"""Seconds to wait for all workers: each reads its images first."""


def check_cluster(name: str, *, sweep: bool) -> None:
    """Check that a run can be distributed by this strategy.

    Raises:
        InputError: `multi_worker` without a valid `TF_CONFIG`, or in a sweep: each worker would choose jobs alone.
    """
    if name != "multi_worker":
        return
    if sweep:
        raise InputError("trainer.distribution=multi_worker is for one run at a time; leave out -m")
    cluster_members()


def cluster_members() -> tuple[list[str], int]:
    """Return the addresses of all workers, and the number of this process among them."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        index = int(task["index"])
        workers_only = (
            set(config["cluster"]) == {"worker"} and task["type"] == "worker"
        )  # no chief, no parameter server
        if workers_only and isinstance(workers, list) and 0 <= index < len(workers) and all(map(_is_address, workers)):
            return workers, index
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(
        "trainer.distribution=multi_worker: each worker needs the environment variable TF_CONFIG, such as "
        '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
        + (f"; it is {text[:200]}" if text else "")
    )


def _is_address(text: Any) -> bool:
    match = re.fullmatch(r"\S+:(\d+)", text) if isinstance(text, str) else None
    return match is not None and int(match[1]) < 1 << 16


def worker_rank() -> int:
    """Return the number of this worker; worker 0 owns the run directory.

    Raises:
        InputError: `TF_CONFIG` is missing or wrong.
    """
    return cluster_members()[1]


def wait_for_workers() -> None:
    """Wait for the other workers. TensorFlow would wait an hour, ignore Ctrl-C, and not name the missing ones.

    Raises:
        InputError: some did not start, or this worker cannot listen at its address.
    """
    workers, index = cluster_members()
    missing = [address for number, address in enumerate(workers) if number != index]
    port = int(workers[index].rpartition(":")[2])
    log.info("worker %d of %d, waiting for %s", index, len(workers), ", ".join(missing) or "nobody")
    end = time.monotonic() + MOST_WAITING
    try:
        # Others see by connecting that this worker is ready. TensorFlow listens at the port next, for late workers.
        with socket.create_server(("", port)):
            while missing := [address for address in missing if not is_listening(address)]:
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


def is_listening(address: str) -> bool:
    """Return whether another process accepts connections at an address `host:port`."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
        return connection.getsockname() != connection.getpeername()  # a free port may be connected to itself
    return False
