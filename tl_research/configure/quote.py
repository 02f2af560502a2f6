"""Values as people type them, quoted where Hydra's grammar cannot read them: `~/x`, `a=b`, `hot-dog_(1)`, `it's`,
`热狗`."""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quote(argument: str, *, sweep: bool = False) -> str:
    """`key=value` with the value quoted if Hydra could not read it otherwise; anything else unchanged.

    In a sweep commas separate values, so each is quoted by itself; otherwise a comma is part of the value.
    """
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or not value or _readable(argument):
        return argument
    values = value.split(",") if sweep else [value]
    return f"{key}=" + ",".join(v if _readable(f"{key}={v}") else _quoted(v) for v in values)


def _readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _quoted(value: str) -> str:
    """In Hydra's quotes a quote is escaped by a backslash, and backslashes before a quote are doubled."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
