"""What a search may try: Hydra's sweep syntax read as dimensions with bounds, before any of it runs."""

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
from tl_research.reports.leaderboard import NO_CHOICE

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_SYNTAX = "give a space such as interval(0.1,0.9), tag(log, interval(1e-4,1e-1)), range(1,8) or choice(a,b)"
_LARGEST = 2**53  # whole numbers that Optuna, which keeps them as floats, does not change


@dataclass(frozen=True)
class Dimension:
    """What one key may be: one of `choices`, or else a number from `low` to `high`, both included.

    `key` is as in an override, `+` and package included; values are texts as in an override.
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
        """The key without what an override may put before it."""
        return self.key.lstrip("+")

    def distribution(self) -> BaseDistribution:
        """The same in Optuna's terms."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def text(self, value: Any) -> str:
        """A value as an override has it: floats to 6 digits, for they become names of folders, and within bounds."""
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
        """Every choice; or the bounds, and a number between them, which shows a key that takes whole numbers only."""
        if self.choices:
            return self.choices
        between = [] if self.whole or self.step else [self.low + (self.high - self.low) / math.e]
        return tuple(dict.fromkeys(self.text(value) for value in (self.low, *between, self.high)))


@dataclass(frozen=True)
class Space:
    """Overrides that all trials share, and dimensions, in the order in which they were given."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def values(self, params: Mapping[str, Any]) -> list[str]:
        """The dimensions' overrides for one choice of values."""
        return [f"{d.key}={d.text(params[d.name])}" for d in self.dimensions]

    def probes(self) -> Iterator[list[str]]:
        """Jobs that show whether the space is good: the first end of every dimension, then each of the other ends."""
        first = [f"{d.key}={d.ends()[0]}" for d in self.dimensions]
        yield [*self.fixed, *first]
        for number, dimension in enumerate(self.dimensions):
            for end in dimension.ends()[1:]:
                yield [*self.fixed, *first[:number], f"{dimension.key}={end}", *first[number + 1 :]]

    def signature(self) -> dict[str, Any]:
        """Plain data that is equal for equal spaces, in whatever order they were given."""
        dimensions = [{**asdict(d), "choices": list(d.choices)} for d in self.dimensions]
        fixed = [text for text in self.fixed if text.lstrip("+").partition("=")[0] not in NO_CHOICE]
        return {"fixed": sorted(fixed), "dimensions": sorted(dimensions, key=lambda d: str(d["key"]))}

    @property
    def is_fresh(self) -> bool:
        """Whether what was found before is to be forgotten."""
        return any(text.lstrip("+").lower() == "fresh=true" for text in self.fixed)


def read_space(params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader) -> Space:
    """Reads a search's space.

    Args:
        params: `hydra.sweeper.params`: key -> sweep syntax, or a plain value, which is then fixed.
        arguments: overrides from the command line; what they say of a key wins over `params`.
        loader: knows the options of groups, for `glob`.

    Raises:
        InputError: something cannot be read, is empty, out of order or infinite; the message names the key. Or there
            is nothing to search over.
    """
    parser = OverridesParser.create(config_loader=loader)
    found: dict[str, tuple[str, Override]] = {}
    for key, value in _flat(params):
        told = f"hydra.sweeper.params.{key}={shown(value)}"
        override = _parse(parser, f"{key}={shown(value)}", told)
        if override.is_hydra_override():
            raise InputError(f"{told}: Hydra's own keys cannot be searched over")
        found[_name(override)] = (told, override)
    for argument in arguments:
        override = _parse(parser, argument, argument)
        found[_name(override)] = (argument, override)
    fixed = [o.input_line or "" for _, o in found.values() if not o.is_sweep_override()]
    dimensions = [_dimension(o, told) for told, o in found.values() if o.is_sweep_override()]
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


def _parse(parser: OverridesParser, text: str, told: str) -> Override:
    try:
        (override,) = parser.parse_overrides([text])  # `parse_override` would leave `glob` without the options
    except HydraException as error:
        reason = str(error).splitlines()[1:2]  # the first line repeats the override
        raise InputError(": ".join([told, "cannot be read", *reason]) + f"; {_SYNTAX}") from None
    if not override.key_or_group:
        raise InputError(f"{told}: not of the form KEY=VALUE")
    return override


def _name(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _dimension(override: Override, told: str) -> Dimension:
    key, value = override.get_key_element(), override.value()
    tags = value.tags if isinstance(value, Sweep) else set()
    if unknown := sorted(tags - {"log"}):
        raise InputError(f"{told}: there is no tag '{unknown[0]}'; the only one is log")
    if isinstance(value, IntervalSweep):
        return _interval(key, value.start, value.end, "log" in tags, told)
    if tags:
        raise InputError(f"{told}: log goes with interval, as in tag(log, interval(1e-4,1e-1))")
    if isinstance(value, RangeSweep):
        return _range(key, value, told)
    if isinstance(getattr(value, "shuffle", None), bool):
        value.shuffle = False  # type: ignore[union-attr]  # the sampler chooses the order; a study needs the same one
    choices = tuple(dict.fromkeys(_spelled(choice) for choice in override.sweep_iterator()))
    if not choices:
        raise InputError(f"{told}: no option has such a name")
    return Dimension(key, choices)


def _spelled(choice: Any) -> str:
    """As an override has it. Hydra drops the quotes of `choice('1','null')` and would read a number, and null."""
    text = Override._get_value_element_as_str(choice)
    if isinstance(choice, str):
        try:
            read = OverridesParser.create().parse_override(f"key={text}").value()
        except HydraException:
            read = None
        if read != choice:
            return QuotedString(choice, Quote.single).with_quotes()
    return text


def _interval(key: str, start: Any, end: Any, log: bool, told: str) -> Dimension:
    _finite(told, start, end)
    if start > end:
        raise InputError(f"{told}: {start} is greater than {end}; give the smaller number first")
    if log and start <= 0:
        raise InputError(f"{told}: a logarithmic scale needs numbers greater than 0")
    return Dimension(key, low=start, high=end, log=log, whole=isinstance(start, int) and isinstance(end, int))


def _range(key: str, value: RangeSweep, told: str) -> Dimension:
    """From start to before stop, as `range` in Python."""
    start, stop, step = value.start, value.stop, value.step
    _finite(told, start, stop, step)
    assert start is not None
    assert stop is not None
    if step == 0:
        raise InputError(f"{told}: a step of 0 leads nowhere")
    first, last, by = (Decimal(str(number)) for number in (start, stop, step))
    count = math.ceil((last - first) / by)
    if count < 1:
        raise InputError(f"{told}: there is no number in this range")
    ends = sorted((first, first + (count - 1) * by))
    whole = all(isinstance(number, int) for number in (start, stop, step))
    kind = int if whole else float
    return Dimension(key, low=kind(ends[0]), high=kind(ends[1]), step=kind(abs(by)), whole=whole)


def _finite(told: str, *numbers: Any) -> None:
    for number in numbers:
        if not math.isfinite(number) or abs(number) > _LARGEST:
            raise InputError(f"{told}: {number} is not a number that can be searched up to")
