"""A process's memory: the limit on its address space, and how errors for want of memory are told from others."""

from __future__ import annotations

import errno
import re
import resource
from pathlib import Path

OUT_OF_MEMORY = "MemoryError|ResourceExhausted|bad_alloc|[Oo]ut of memory|OOM when|(annot|nable to|ailed to) allocate"
"""What Python, NumPy, TensorFlow, OpenVINO, HDF5 and the C library say for want of memory."""

_UNDER_A_LIMIT = OUT_OF_MEMORY + "|can't start new thread|Resource temporarily unavailable"


def says_out_of_memory(text: str) -> bool:
    """Tell whether an error's text speaks of want of memory. With a limit on the address space a thread that cannot be
    started lacks it, too: each reserves some megabytes for its stack."""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return re.search(_UNDER_A_LIMIT if limited else OUT_OF_MEMORY, text) is not None


def memory_error(error: BaseException | None) -> BaseException | None:
    """Find the error for want of memory that is behind an error or is the error itself; None if there is none. Code
    that reads files reports whatever goes wrong as a damaged or missing file."""
    found = None
    while error is not None:
        no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if no_memory or says_out_of_memory(f"{type(error).__name__}: {error}"):
            found = error
        error = error.__cause__ or error.__context__
    return found


def address_space_gb() -> float:
    """Return the address space of this process in units of 2**30 bytes; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() / 2**30
    except OSError:
        return 0.0


def limit_address_space(gb: float) -> None:
    """Limit the address space of this process; a stricter limit that it has already stays.

    Raises:
        ValueError or OSError: the system has no such limit (macOS).
    """
    limit, hard = int(gb * 2**30), resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
