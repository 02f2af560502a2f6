"""Quote values that people type and Hydra's grammar cannot read: `~/x`, `a=b`, `hot-dog_(1)`, `it's`, `热狗`."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

_OUTPUTS = ("hydra.run.dir", "hydra.sweep.dir")
_TEXTS = ("data.root", "data.archive", "data.cache", "data.dataset", "backbone.weights", "backbone.build", *_OUTPUTS)
"""Keys whose values are text, even if Hydra would read a number: a folder may be called 1_000, 1e3 or true."""


def quote(argument: str, *, sweep: bool = False) -> str:
    """Quote the value of `key=value` if Hydra could not read it otherwise; return anything else unchanged.

    In a sweep commas separate values, so each is quoted by itself; otherwise a comma is part of the value.
    """
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or not value:
        return argument
    if key in _OUTPUTS:
        value = os.path.expanduser(value)  # noqa: PTH111 - Path would drop a slash at the end
    if _readable(key, value):
        return f"{key}={value}"
    values = value.split(",") if sweep else [value]
    return f"{key}=" + ",".join(v if _readable(key, v) else _quoted(v) for v in values)


def _readable(key: str, value: str) -> bool:
    """Whether Hydra reads the value as intended. Its own quotes, `null`, `${...}` and commas stay as they are."""
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return False
    if value.endswith("\\"):  # it would escape the comma or quote that follows
        return False
    if key not in _TEXTS or "," in value or "${" in value or isinstance(override._value, QuotedString):
        return True
    return override.value() in (None, value)


def _quoted(value: str) -> str:
    """Put a value in Hydra's quotes: a quote is escaped by a backslash, and backslashes before a quote are doubled."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
