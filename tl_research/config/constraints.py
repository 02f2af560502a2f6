"""Describe the valid values of a recipe's field from its type: `a whole number of at least 1`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import TypeAdapter

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "string": "text",
    "null": "null",
}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def allowed(recipe: type, name: str) -> str | None:
    """Describe the range of one field; None for fields that are not plain values."""
    fields: dict[str, Any] = getattr(recipe, "__pydantic_fields__", {})
    matching = next((field for key, field in fields.items() if name in (key, field.alias)), None)
    if matching is None:
        return None
    annotation: Any = Annotated[(matching.annotation, *matching.metadata)] if matching.metadata else matching.annotation
    return _words(TypeAdapter(annotation).json_schema())


def _words(schema: dict[str, Any]) -> str | None:
    if "anyOf" in schema:
        parts = [_words(part) for part in schema["anyOf"]]
        return None if None in parts else " or ".join(str(part) for part in parts)
    if not schema:
        return "any value"
    if "enum" in schema or "const" in schema:
        *first, last = [f"'{value}'" for value in schema.get("enum", [schema.get("const")])]
        return f"{', '.join(first)} or {last}" if first else last
    if "prefixItems" in schema:
        return f"[{', '.join(_words(part) or 'a value' for part in schema['prefixItems'])}]"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"{{NAME: {_words(values) or 'a value'}}}"
    kind = _KINDS.get(schema.get("type", ""))
    if schema.get("minLength"):
        return "text that is not empty"
    bounds = [f"{words} {schema[bound]}" for bound, words in _BOUNDS.items() if bound in schema]
    return f"{kind} {' and '.join(bounds)}".strip() if kind else None


def shown(value: Any) -> str:
    """Write a value as it is typed on the command line: `null`, `true`."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
