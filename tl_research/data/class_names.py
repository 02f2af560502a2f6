"""Compare the names of classes as people write them: in any Unicode form, with spaces around, in any case."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def clean_name(name: str) -> str:
    """Normalize to NFC, without spaces around it; a name of spaces alone stays as it is."""
    return unicodedata.normalize("NFC", name).strip() or name


def same_but_case(name: str, names: Iterable[str]) -> list[str]:
    """List those of `names` that differ from a name in case alone, or not at all."""
    folded = clean_name(name).casefold()
    return [other for other in names if clean_name(other).casefold() == folded]


def match_name(name: str, names: Iterable[str]) -> str | None:
    """Return which of `names` is this one: the same, or the only one that differs in case; None if there is none."""
    alike = same_but_case(name, names)
    exact = [other for other in alike if clean_name(other) == clean_name(name)]
    return exact[0] if exact else alike[0] if len(alike) == 1 else None


def nearest_name(name: str, names: Iterable[str]) -> str:
    """Return which of `names` is most like this one."""
    folded = clean_name(name).casefold()
    return max(names, key=lambda other: difflib.SequenceMatcher(None, folded, other.casefold()).ratio())
