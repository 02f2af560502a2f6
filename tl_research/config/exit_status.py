"""Exit statuses of commands, and the one line that each expected error becomes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hydra.errors import HydraException

from tl_research.backend.strategy import WorkerLostError
from tl_research.errors import InputError
from tl_research.system.console import show_error

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = _FULL | {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def run_reporting_errors(action: Callable[[], int]) -> int:
    """Run a command and return its exit status; an expected error is printed in one line on standard error.

    The status is 2 for bad input, 1 for a failure and 130 for an interruption. Unexpected errors are raised.
    """
    try:
        return action()
    except InputError as error:
        return _report(str(error), BAD_INPUT)
    except ExceptionGroup as group:
        return _report("\n".join(map(str, group.exceptions)), BAD_INPUT)
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


def _report(message: str, status: int) -> int:
    show_error(message)
    return status
