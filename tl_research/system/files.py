"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path` and rename, so that there is never half a file of this name, even on a full disk. Where it is
    a link, the file that it leads to is replaced.

    Characters that UTF-8 cannot encode, as in file names of another encoding, are escaped by a backslash.

    Raises:
        OSError: the file cannot be written, or it is a device or a pipe, which renaming would destroy.
    """
    path = replaceable(path)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes it private, and results are to be shared
        Path(temporary).replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not the one that nobody has asked for
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise


def replaceable(path: Path) -> Path:
    """Return the file that a path leads to. Raises `FileExistsError` if it is a device, a pipe or a folder."""
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "not a regular file", str(path))
    return path
