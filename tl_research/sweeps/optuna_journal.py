"""Keep the journal file of a study intact when processes that share it are killed."""

from __future__ import annotations

import json
from pathlib import Path

from tl_research.errors import InputError


def check_is_journal(journal: Path) -> None:
    """Refuse a file that is not a journal of Optuna's, before it is changed: the path may be a typing mistake."""
    if not journal.is_file():
        return
    with journal.open("rb") as file:
        first = file.readline()
    try:
        torn = not first.endswith(b"\n") and b'{"op_code"'.startswith(first[:10])  # killed while writing the first line
        is_journal = torn or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        is_journal = False
    if not is_journal:
        raise InputError(f"{journal}: not a journal of Optuna's; give another hydra.sweeper.study")


def mend(journal: Path) -> None:
    """Remove an incomplete last line, left by a killed process: the next entry would be appended to it, and the journal
    could not be read any further."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
