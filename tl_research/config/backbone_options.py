"""Expand the names of backbones in `backbone.parts` and `backbone.among` to the configurations of these options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tl_research.config.suggestions import near
from tl_research.errors import InputError

MANY = ("auto", "combined")
NO_WEIGHTS = ("custom", "saved", "tiny")  # options that have none of their own


def expand_backbones(backbone: dict[str, Any]) -> None:
    """Replace the names in `parts` and `among`, in place; what is expanded already stays. None stands for all backbones
    whose weights are on this machine."""
    if isinstance(backbone.get("parts"), Sequence):
        backbone["parts"] = _expanded("backbone.parts", backbone["parts"])
        sizes = [part.get("image_size") for part in backbone["parts"]]
        if backbone.get("image_size") is None and all(isinstance(size, int) for size in sizes):
            backbone["image_size"] = max(sizes, default=None)
    if "among" in backbone:
        found = _expanded("backbone.among", backbone["among"])
        is_named = backbone["among"] is not None
        backbone["among"] = [each for each in found if is_named or instantiate(each).is_there()]
        if backbone["default"] is not None:
            backbone["default"] = _expanded("backbone.default", [backbone["default"]])[0]


def _expanded(key: str, given: Any) -> list[dict[str, Any]]:
    """Look up all backbones in one composition: a list, or names joined by plus signs; None stands for all that have
    weights of their own."""
    if isinstance(given, str):
        given = [name.strip() for name in given.split("+")]
    if not isinstance(given, Sequence | None):
        raise InputError(f"{key}={given}: give a list, such as [efficientnet_lite0,efficientnet_lite1]")
    if given is not None and all(isinstance(each, Mapping) and "_target_" in each for each in given):
        return list(given)
    with _loader() as loader:
        options = [name for name in loader.get_group_options("backbone", ObjectType.CONFIG) if name not in MANY]
        wanted = [name for name in options if name not in NO_WEIGHTS] if given is None else given
        asked = [_parsed(key, each) for each in wanted]
        for name, _ in asked:
            if name not in options:
                raise InputError(f"{key}: there is no backbone {name}; {near(name, options)}")
        overrides = [f"+backbone@found.b{number}={name}" for number, (name, _) in enumerate(asked)]
        config = loader.load_configuration("config", overrides, RunMode.RUN) if asked else None
    found: Any = OmegaConf.to_container(config.found, resolve=True) if config else {}
    return [_changed(key, found[f"b{number}"], changes) for number, (_, changes) in enumerate(asked)]


def _parsed(key: str, each: Any) -> tuple[str, dict[str, Any]]:
    """Return the option and the keys to change of `NAME`, `NAME@SIZE`, `NAME@LAYER` or `{name: NAME, ...}`."""
    if isinstance(each, Mapping):
        if not isinstance(each.get("name"), str):
            raise InputError(f"{key}: {dict(each)} has no name; give {{name: efficientnet_lite0, image_size: 320}}")
        name, changes = _parsed(key, each["name"])
        return name, changes | {k: v for k, v in each.items() if k != "name"}
    name, *marks = str(each).split("@")
    return name, {
        ("image_size" if mark.isdecimal() else "layer"): int(mark) if mark.isdecimal() else mark for mark in marks
    }


def _changed(key: str, config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change keys of a backbone, and name it by its option and the changes."""
    for name in changes:
        if name not in config:
            raise InputError(f"{key}: {config['name']} has no key {name}; {near(name, [*config, 'layer'])}")
    path = changes.get("weights")
    if path not in (None, "imagenet"):
        changes = changes | {"weights": str(Path(str(path)).expanduser().absolute())}
    marks = [str(changes[mark]) for mark in ("image_size", "layer") if mark in changes]
    others = [f"{k}={Path(str(v)).name}" for k, v in changes.items() if k not in ("image_size", "layer")]
    return config | changes | {"name": "@".join([config["name"], *marks, *others])}


@contextmanager
def _loader() -> Iterator[ConfigLoader]:
    """Use the open Hydra's loader; in a job's own process there is none, but the folders that it was composed from."""
    from tl_research.config.compose import hydra

    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [source.path for source in sources if source.provider == "command-line"]
    with hydra(folders[0] if folders else None) as composer:
        yield composer.config_loader
