"""Put facts into a LiteRT file, where its readers look for them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any


def add_metadata(path: Path, facts: dict[str, Any]) -> None:
    """Append `labels.txt` (a class a line) and `model.json` to a LiteRT file as its associated files: what makes it a
    zip archive, too, and does not disturb its interpreter."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(facts["class_names"]) + "\n")
        archive.writestr("model.json", json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
