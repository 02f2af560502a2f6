"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path` and rename, so that there is never half a file of this name, even on a full disk.

    Characters that UTF-8 cannot encode, as in file names of another encoding, are escaped by a backslash.

    Raises:
        OSError: the file cannot be written.
    """
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
