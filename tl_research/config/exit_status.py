"""Run a command: its warnings and signals, its exit status, and the one line that each expected error becomes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable

from hydra.errors import HydraException
from yaml import YAMLError

from tl_research.backend.strategy import WorkerLostError
from tl_research.config.compose_errors import describe_yaml_error
from tl_research.errors import InputError
from tl_research.system.console import show_error
from tl_research.system.interruption import interrupt
from tl_research.system.memory import memory_error

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = _FULL | {
    errno.EACCES,
    errno.EEXIST,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EPIPE,
    errno.EROFS,
}


def run_reporting_errors(action: Callable[[], int]) -> int:
    """Run a command and return its exit status; an expected error is printed in one line on standard error.

    The status is 2 for bad input, 1 for a failure and 130 for an interruption by Ctrl-C or SIGTERM, as a batch system
    ends a job. Unexpected errors are raised.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", r"tl_research\.", FutureWarning)  # an old name is in use
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
        return _told(action)
    except InputError as error:
        return _report(str(error), BAD_INPUT)
    except ExceptionGroup as group:
        return _report("\n".join(map(str, group.exceptions)), BAD_INPUT)
    except YAMLError as error:
        return _report(describe_yaml_error(error), BAD_INPUT)
    except HydraException as error:
        return _report(str(error).splitlines()[0], BAD_INPUT)
    except WorkerLostError as error:
        return _report(str(error), FAILED)
    except KeyboardInterrupt as error:
        return _report(str(error) or "interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        path = f" {error.filename}" if error.filename else ""
        return _report(f"cannot write{path}: {error.strerror}", FAILED if error.errno in _FULL else BAD_INPUT)
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):  # TensorFlow's writers raise exceptions of their own for it
            raise
        return _report(f"cannot write: {os.strerror(errno.ENOSPC)}", FAILED)


def _told(action: Callable[[], int]) -> int:
    """Run a command; want of memory, which is often reported as a bad file, is reported as such."""
    try:
        return action()
    except Exception as error:
        if cause := memory_error(error):
            return _report(f"out of memory: {' '.join(f'{type(cause).__name__}: {cause}'.split())}", FAILED)
        raise


def _report(message: str, status: int) -> int:
    show_error(message)
    return status
