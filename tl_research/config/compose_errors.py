"""Compose a config; if Hydra cannot, explain why in one line with the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hydra.core.default_element import ConfigDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tl_research.config.compose import build_experiment, find_plugin
from tl_research.config.constraints import shown
from tl_research.config.hydra_internals import Hydra
from tl_research.config.suggestions import near
from tl_research.errors import InputError


def compose_config(
    composer: Hydra, overrides: Sequence[str], config_name: str = "config", mode: RunMode = RunMode.RUN
) -> DictConfig:
    """Compose a config, with Hydra's own part under `hydra`. Raises `InputError` instead of Hydra's exceptions."""
    try:
        return composer.compose_config(config_name, list(overrides), mode, from_shell=False)
    except YAMLError as error:
        raise InputError(describe_yaml_error(error)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"a file of the configuration is no text ({error}); save it as UTF-8") from None
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        raise explain(composer, overrides, config_name, error, sweep=mode == RunMode.MULTIRUN) from None


def describe_yaml_error(error: YAMLError) -> str:
    """Say in which line of which file YAML is wrong."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a configuration file"
    return f"{place}: this is not YAML ({getattr(error, 'problem', None) or error})"


def explain(
    composer: Hydra, overrides: Sequence[str], config_name: str, error: Exception, *, sweep: bool = False
) -> InputError:
    """Find the override that Hydra refused by comparing each with the existing groups, options and keys."""
    parsed: list[Override] = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException:
            return InputError(f"{text}: not of the form KEY=VALUE")
        if not parsed[-1].key_or_group:
            return InputError(f"{text}: not of the form KEY=VALUE")
    groups = [o for o in parsed if is_group(composer, o.key_or_group)]
    for override in groups:
        options = composer.config_loader.get_group_options(override.key_or_group, ObjectType.CONFIG)
        value = override.value()
        if not isinstance(value, list) and not override.is_sweep_override() and value not in options:
            value = shown(value)
            return InputError(
                f"{override.key_or_group}={value}: there is no such option; "
                f"{near(value, options, override.key_or_group)}"
            )
    base = _compose(composer, config_name, [o.input_line or "" for o in groups if not o.is_sweep_override()])
    for override in parsed:
        if (
            base is not None
            and override not in groups
            and not override.is_add()
            and not has(OmegaConf.to_container(base), override.key_or_group)
        ):
            return _unknown_key(composer, config_name, base, override, overrides)
    for override in parsed:
        if override.is_sweep_override() and not sweep:
            return InputError(
                f"{override.input_line}: several values make a sweep: add -m "
                f"(or quote the value: \"{override.key_or_group}='...'\")"
            )
    reasons = [str(e).splitlines()[0] for e in (error, error.__cause__) if e]
    return InputError(": ".join(dict.fromkeys(reasons)))


def _unknown_key(
    composer: Hydra, config_name: str, base: DictConfig, override: Override, overrides: Sequence[str]
) -> InputError:
    key = override.key_or_group
    group, _, rest = key.partition(".")
    if key.startswith("hydra.launcher."):
        find_plugin(base, "launcher")  # which has keys of its own
    if group == "hydra":  # its groups are a level deeper, such as hydra/sweeper
        name, _, rest = rest.partition(".")
        group = f"hydra/{name}"
    node = OmegaConf.select(base, group.replace("/", "."))
    option = base.hydra.runtime.choices.get(group)
    keys_of = {o: _keys_of(composer, f"{group}/{o}") for o in _options(composer, group) if rest and o != option}
    own = _keys(node) if isinstance(node, DictConfig) and rest else []
    if not any(rest in keys for keys in keys_of.values()):  # it may be a misspelt one of them
        close = difflib.get_close_matches(rest, {*own}.union(*keys_of.values()), 1, 0.7)
        if close and close[0] not in own:
            holder = next(o for o, keys in keys_of.items() if close[0] in keys)
            return InputError(f"{key}: there is no such key; nearest: {group}.{close[0]}, of {group}={holder}")
    holders = [o for o, keys in keys_of.items() if rest in keys]
    if holders:
        also = " or ".join(f"{group}={holder}" for holder in holders[:4])
        why = _refusal(composer, config_name, [*overrides, f"{group}={holders[0]}"], key)
        leaf = rest.rpartition(".")[2]
        like = [f"{group}.{k}" for k in own if k.endswith(f".{leaf}")]
        has = f" (but {like[0]})" if like else ""
        return InputError(f"{override.input_line}: {group}={option} has no {rest}{has}; add {also}, which has it{why}")
    if own:
        prefix = key.removesuffix(rest)
        return InputError(f"{key}: there is no such key; {near(key, [f'{prefix}{k}' for k in own])}")
    names = [*_keys(base), *(g for g in base.hydra.runtime.choices if not g.startswith("hydra"))]
    return InputError(f"{key}: there is no such key; {near(key, names)}")


def _refusal(composer: Hydra, config_name: str, overrides: Sequence[str], key: str) -> str:
    """Return the error that the option with this key would raise: one attempt then shows both mistakes."""
    cfg = _compose(composer, config_name, overrides)
    if cfg is None:
        return ""
    try:
        build_experiment(cfg)
    except InputError as error:
        return f" ({error})" if str(error).startswith(key) else ""
    return ""


def _compose(composer: Hydra, config_name: str, overrides: Sequence[str]) -> DictConfig | None:
    try:
        return composer.compose_config(config_name, list(overrides), RunMode.RUN, from_shell=False)
    except (HydraException, OmegaConfBaseException, YAMLError, TypeError, ValueError):
        return None


def is_group(composer: Hydra, key: str) -> bool:
    """Whether a key is a group of options, such as `backbone` or `hydra/launcher`."""
    return bool(_options(composer, key))


def _options(composer: Hydra, group: str) -> list[str]:
    return [] if not group or "." in group else composer.config_loader.get_group_options(group, ObjectType.CONFIG)


def _keys_of(composer: Hydra, path: str) -> set[str]:
    """List the keys of a file of `conf/`, with those of the files that it extends."""
    loaded = composer.config_loader.repository.load_config(path)  # type: ignore[attr-defined]  # of its one subclass
    if loaded is None:
        return set()
    keys = {*_keys(OmegaConf.to_container(loaded.config, resolve=False))}
    for default in loaded.defaults_list or ():
        if isinstance(default, ConfigDefault) and not default.is_self():
            prefix = "" if default.package in (None, "_here_") else f"{default.package}."
            base = str(PurePosixPath("/", path).parent / str(default.path)).lstrip("/")
            keys |= {f"{prefix}{key}" for key in _keys_of(composer, base)}
    return keys


def _find(node: Any, path: Sequence[str]) -> bool:
    return not path or (isinstance(node, Mapping) and path[0] in node and _find(node[path[0]], path[1:]))


def has(config: Any, key: str) -> bool:
    """Whether a plain nested dict has a key, written with dots."""
    return _find(config, key.split("."))


def _keys(node: Any, prefix: str = "") -> list[str]:
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    keys = []
    for key, value in node.items():
        if key in ("_target_", "hydra"):
            continue
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
