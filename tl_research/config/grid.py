"""Expand a sweep into jobs: every combination of the given values, with each key only where it exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tl_research.config.compose_errors import compose_config, has, is_group
from tl_research.config.hydra_internals import BasicSweeper, Hydra
from tl_research.errors import InputError

left_out: set[tuple[str, ...]] = set()
"""The jobs that preflight has found to be impossible combinations: their overrides, without Hydra's own."""


def grid_jobs(composer: Hydra, master: DictConfig) -> list[list[str]]:
    """Return the overrides of each job, without Hydra's own and without jobs that are `left_out`.

    `transfer=frozen,finetune transfer.backbone.epochs=1,3` is three jobs: keys that exist only for some options apply
    to those options only, and equal jobs are one. A key that exists nowhere stays in all jobs, and composing them
    reports it. `hydra.sweeper.params` adds overrides; the command line wins.
    """
    parser = OverridesParser.create(config_loader=composer.config_loader)
    parsed = parser.parse_overrides(list(master.hydra.overrides.task))
    given = {override.key_or_group for override in parsed}
    params = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
    parsed = [*(own for own in parser.parse_overrides(params) if own.key_or_group not in given), *parsed]
    combinations = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    options = _groups(composer, parsed)
    if not any(override.is_sweep_override() and override.key_or_group in options for override in parsed):
        return [list(job) for job in combinations if tuple(job) not in left_out]
    values = {override.key_or_group for override in parsed if not _is_free(override, options)}
    have: dict[tuple[str, ...], set[str]] = {}
    chosen = []
    for job in combinations:
        groups = tuple(text for text in job if _key(text) in options)
        if groups not in have:
            config = _composed(composer, master, groups)
            have[groups] = {key for key in values if config is None or has(config, key)}
        chosen.append(groups)
    somewhere = set.union(*have.values())
    jobs = (
        tuple(text for text in job if _key(text) not in somewhere or _key(text) in have[groups])
        for job, groups in zip(combinations, chosen, strict=True)
    )
    return [list(job) for job in dict.fromkeys(jobs) if job not in left_out]


def _groups(composer: Hydra, parsed: Sequence[Override]) -> set[str]:
    """Return the groups among the keys of these overrides."""
    return {key for key in {override.key_or_group for override in parsed} if is_group(composer, key)}


def _is_free(override: Override, groups: set[str]) -> bool:
    """Whether an override is valid for any job: it chooses an option, or adds or deletes a key."""
    return override.key_or_group in groups or override.is_add() or override.is_delete()


def _key(text: str) -> str:
    return text.partition("=")[0].partition("@")[0]


def _composed(composer: Hydra, master: DictConfig, groups: Sequence[str]) -> Any:
    """Compose the config of these options alone; None if they are incompatible, which preflight reports."""
    overrides = [*master.hydra.overrides.hydra, *groups]
    try:
        cfg = compose_config(composer, overrides, str(master.hydra.job.config_name or "config"))
    except InputError:
        return None
    return OmegaConf.to_container(cfg)


def spread(composer: Hydra, overrides: Sequence[str], config_name: str) -> list[str]:
    """Rewrite the overrides of a sweep so that Hydra can compose the part that all jobs share. It would refuse
    `transfer.backbone.epochs=3` beside `transfer=frozen,finetune`, because the default has no such key; a choice of one
    value goes to the jobs only."""
    parsed = [_parsed(OverridesParser.create(config_loader=composer.config_loader), text) for text in overrides]
    groups = _groups(composer, parsed)
    if not any(override.is_sweep_override() and override.key_or_group in groups for override in parsed):
        return list(overrides)
    fixed = [str(o.input_line) for o in parsed if o.key_or_group in groups and not o.is_sweep_override()]
    try:
        config = OmegaConf.to_container(compose_config(composer, fixed, config_name))
    except InputError:  # reported when the sweep is composed
        return list(overrides)
    absent = {o.input_line for o in parsed if not (o.is_sweep_override() or _is_free(o, groups))
              and not has(config, o.key_or_group)}  # fmt: skip
    return [_as_choice(*text.split("=", 1)) if text in absent else text for text in overrides]


def _parsed(parser: OverridesParser, text: str) -> Override:
    """Read an override, which must give a value."""
    try:
        (override,) = parser.parse_overrides([text])
        if override.is_range_sweep() and override.value().step == 0:  # type: ignore[union-attr]
            raise InputError(f"{text}: a range needs a step other than 0")
        if override.is_discrete_sweep() and next(override.sweep_iterator(), None) is None:
            raise InputError(f"{text}: it gives no value; write such as KEY=1,2")
    except HydraException:
        raise InputError(f"{text}: not of the form KEY=VALUE or KEY=VALUE,VALUE") from None
    return override


def _as_choice(key: str, value: str) -> str:
    """Write a choice of one value; Hydra's `choice` takes no null, and equal jobs are one."""
    return f"{key}=null,null" if value == "null" else f"{key}=choice({value})"
