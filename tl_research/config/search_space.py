"""Read Hydra's sweep syntax as the space of a search: dimensions with choices or bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException

from tl_research.config.constraints import shown
from tl_research.errors import InputError
from tl_research.reports.entries import NO_CHOICE

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_SYNTAX = "give a space such as interval(0.1,0.9), tag(log, interval(1e-4,1e-1)), range(1,8) or choice(a,b)"
_LARGEST = 2**53  # Optuna stores whole numbers as floats, which are exact up to here


@dataclass(frozen=True)
class Dimension:
    """The values of one key: one of `choices`, or a number from `low` to `high`, both included.

    `key` and the choices are written as in an override, with `+` and package.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """The key without the prefixes of an override."""
        return self.key.lstrip("+")

    def distribution(self) -> BaseDistribution:
        """Return the dimension as a distribution of Optuna's."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def text(self, value: Any) -> str:
        """Write a value as in an override. Floats get 6 digits, because they name directories, but stay in bounds."""
        if self.choices:
            return str(value)
        if self.whole:
            return str(int(value))
        if self.step:
            steps = round((value - self.low) / self.step)
            return repr(float(Decimal(str(self.low)) + steps * Decimal(str(self.step))))
        rounded = float(f"{value:.6g}")
        return repr(rounded if self.low <= rounded <= self.high else float(value))

    def ends(self) -> tuple[str, ...]:
        """Return all choices; or the bounds and a number between, which reveals a key that takes whole numbers only."""
        if self.choices:
            return self.choices
        between = [] if self.whole or self.step else [self.low + (self.high - self.low) / math.e]
        return tuple(dict.fromkeys(self.text(value) for value in (self.low, *between, self.high)))


@dataclass(frozen=True)
class Space:
    """The space of a search: overrides that all trials share, and dimensions in the order in which they were given."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def values(self, params: Mapping[str, Any]) -> list[str]:
        """Return the dimensions' overrides for the parameters of one trial."""
        return [f"{d.key}={d.text(params[d.name])}" for d in self.dimensions]

    def probes(self) -> Iterator[list[str]]:
        """Yield jobs that validate the space: the first end of every dimension, then each of the other ends."""
        first = [f"{d.key}={d.ends()[0]}" for d in self.dimensions]
        yield [*self.fixed, *first]
        for number, dimension in enumerate(self.dimensions):
            for end in dimension.ends()[1:]:
                yield [*self.fixed, *first[:number], f"{dimension.key}={end}", *first[number + 1 :]]

    def signature(self) -> dict[str, Any]:
        """Return plain data that is equal for equal spaces, whatever the order of the overrides."""
        dimensions = [{**asdict(d), "choices": list(d.choices)} for d in self.dimensions]
        fixed = [text for text in self.fixed if text.lstrip("+").partition("=")[0] not in NO_CHOICE]
        return {"fixed": sorted(fixed), "dimensions": sorted(dimensions, key=lambda d: str(d["key"]))}

    @property
    def is_fresh(self) -> bool:
        """Whether earlier trials are deleted first."""
        return any(text.lstrip("+").lower() == "fresh=true" for text in self.fixed)


def read_space(params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader) -> Space:
    """Read the space of a search.

    Args:
        params: `hydra.sweeper.params`: key -> sweep syntax, or a plain value, which all trials share.
        arguments: overrides from the command line; they win over `params`.
        loader: lists the options of groups, for `glob`.

    Raises:
        InputError: a value cannot be read, is empty, out of order or infinite (the message names the key), or there
            is nothing to search over.
    """
    parser = OverridesParser.create(config_loader=loader)
    read: dict[str, tuple[str, Override]] = {}
    for key, value in _flat(params):
        typed = f"hydra.sweeper.params.{key}={shown(value)}"
        override = _parse(parser, f"{key}={shown(value)}", typed)
        if override.is_hydra_override():
            raise InputError(f"{typed}: Hydra's own keys cannot be searched over")
        read[_name(override)] = (typed, override)
    for argument in arguments:
        override = _parse(parser, argument, argument)
        read[_name(override)] = (argument, override)
    fixed = [o.input_line or "" for _, o in read.values() if not o.is_sweep_override()]
    dimensions = [_dimension(o, typed) for typed, o in read.values() if o.is_sweep_override()]
    if not dimensions:
        raise InputError(
            f"hydra/sweeper=optuna: there is nothing to search over; add hparams=head, or {_SYNTAX} to a key"
        )
    return Space(tuple(fixed), tuple(dimensions))


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(parser: OverridesParser, text: str, typed: str) -> Override:
    try:
        (override,) = parser.parse_overrides([text])  # `parse_override` would leave `glob` without the options
    except HydraException as error:
        reason = str(error).splitlines()[1:2]  # the first line repeats the override
        raise InputError(": ".join([typed, "cannot be read", *reason]) + f"; {_SYNTAX}") from None
    if not override.key_or_group:
        raise InputError(f"{typed}: not of the form KEY=VALUE")
    return override


def _name(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _dimension(override: Override, typed: str) -> Dimension:
    key, value = override.get_key_element(), override.value()
    tags = value.tags if isinstance(value, Sweep) else set()
    if unknown := sorted(tags - {"log"}):
        raise InputError(f"{typed}: there is no tag '{unknown[0]}'; the only one is log")
    if isinstance(value, IntervalSweep):
        return _interval(key, value.start, value.end, "log" in tags, typed)
    if tags:
        raise InputError(f"{typed}: log goes with interval, as in tag(log, interval(1e-4,1e-1))")
    if isinstance(value, RangeSweep):
        return _range(key, value, typed)
    if isinstance(getattr(value, "shuffle", None), bool):
        value.shuffle = False  # type: ignore[union-attr]  # a study needs the same order every time
    choices = tuple(dict.fromkeys(_spelled(choice) for choice in override.sweep_iterator()))
    if not choices:
        raise InputError(f"{typed}: no option has such a name")
    return Dimension(key, choices)


def _spelled(choice: Any) -> str:
    """Write a choice as in an override. Hydra drops the quotes of `choice('1','null')`, which changes the type."""
    text = Override._get_value_element_as_str(choice)
    if isinstance(choice, str):
        try:
            read = OverridesParser.create().parse_override(f"key={text}").value()
        except HydraException:
            read = None
        if read != choice:
            return QuotedString(choice, Quote.single).with_quotes()
    return text


def _interval(key: str, start: Any, end: Any, log: bool, typed: str) -> Dimension:
    _finite(typed, start, end)
    if start > end:
        raise InputError(f"{typed}: {start} is greater than {end}; give the smaller number first")
    if log and start <= 0:
        raise InputError(f"{typed}: a logarithmic scale needs numbers greater than 0")
    return Dimension(key, low=start, high=end, log=log, whole=isinstance(start, int) and isinstance(end, int))


def _range(key: str, value: RangeSweep, typed: str) -> Dimension:
    """Read `range(start, stop, step)`, which excludes stop as in Python."""
    start, stop, step = value.start, value.stop, value.step
    _finite(typed, start, stop, step)
    assert start is not None
    assert stop is not None
    if step == 0:
        raise InputError(f"{typed}: a step of 0 leads nowhere")
    first, last, by = (Decimal(str(number)) for number in (start, stop, step))
    count = math.ceil((last - first) / by)
    if count < 1:
        raise InputError(f"{typed}: there is no number in this range")
    ends = sorted((first, first + (count - 1) * by))
    whole = all(isinstance(number, int) for number in (start, stop, step))
    kind = int if whole else float
    return Dimension(key, low=kind(ends[0]), high=kind(ends[1]), step=kind(abs(by)), whole=whole)


def _finite(typed: str, *numbers: Any) -> None:
    for number in numbers:
        if not math.isfinite(number) or abs(number) > _LARGEST:
            raise InputError(f"{typed}: {number} is not a number that can be searched up to")
