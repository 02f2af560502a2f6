"""Define `@recipe`: a frozen, typed, validated description of an object that its `build()` creates."""

from __future__ import annotations

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")

_CONFIG = ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=True,
    coerce_numbers_to_str=True,  # a folder may be called 2024
    allow_inf_nan=False,
    populate_by_name=True,
)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def recipe(cls: type[T]) -> type[T]:
    """Make a frozen dataclass with validated fields: an unknown key, a wrong type or a value out of range raises
    `pydantic.ValidationError`, which `config` converts to one line with the key's full name."""
    return dataclass(frozen=True, kw_only=True, config=_CONFIG)(cls)  # type: ignore[return-value]


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
