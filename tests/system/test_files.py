"""Files are written whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tl_research.system.files import write_atomically


@pytest.mark.parametrize("name", ["missing/report.html", "file/report.html", "folder"])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=re.escape(f"'{tmp_path / name}'")) as caught:
        write_atomically(tmp_path / name, "text")
    assert caught.value.filename2 is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_is_followed_and_a_pipe_is_spared(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not a regular file"):
        write_atomically(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()
