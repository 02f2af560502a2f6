"""Turn a composed config into an `Experiment`: resolve it, instantiate it once, and name the key of any error."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from tl_research.config.backbone_options import expand_backbones
from tl_research.config.constraints import allowed, shown
from tl_research.config.hydra_internals import Hydra, create_config_search_path
from tl_research.config.suggestions import near
from tl_research.errors import CombinationError, InputError

if TYPE_CHECKING:
    from tl_research.experiment.experiment import Experiment

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (p / "config.yaml").is_file())
"""`conf/`, which is inside the package in a wheel and beside it in a clone."""

_EXTRAS = {"ray_launcher": "ray", "submitit_launcher": "slurm"}
"""Part of a plugin's `_target_` -> the extra that installs it."""

_PATHS = ("data.root", "data.table", "data.images", "data.archive", "data.cache", "backbone.weights", "features.store")


@contextmanager
def hydra(config_dir: str | Path | None = None) -> Iterator[Hydra]:
    """Open Hydra on `conf/`, with the user's folder searched first. An outer Hydra (a running job's) is restored."""
    search_path = create_config_search_path(str(CONF))
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: no such folder")
        search_path.prepend("command-line", f"file://{folder}")
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            # Our ray.yaml is merged with the plugin's schema of that name, which checks types: intended.
            warnings.filterwarnings("ignore", "(?s).*is validated against ConfigStore schema")
            yield Hydra.create_main_hydra2("train", search_path)
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def build_experiment(cfg: DictConfig) -> Experiment:
    """Instantiate a composed config. Raises `InputError` naming the key, its value, and what it may be."""
    config, choices, directory = _resolve(cfg)
    return replace(make(config, cfg), config={**config, "choices": choices}, directory=directory)


def make(config: dict[str, Any], cfg: DictConfig) -> Any:
    """Instantiate a resolved config, as an `Experiment` or one of its recipes; `cfg` is the unresolved one. Raises
    `InputError` as `build_experiment`."""
    try:
        return instantiate(OmegaConf.create(config), _convert_="all")
    except InstantiationException as error:
        raise _to_input_error(error, cfg) from None


def check_plugins(cfg: DictConfig) -> None:
    """Check that a sweep's launcher and sweeper are installed and, if they are ours, that their keys are valid.
    Raises `InputError` naming the key, or the extra to install."""
    for group in ("launcher", "sweeper"):
        config = OmegaConf.to_container(cfg.hydra[group], resolve=True)
        assert isinstance(config, dict)
        keys = getattr(find_plugin(cfg, group), "recipe", None)
        if keys is not None:
            node = OmegaConf.create({"hydra": {group: {**config, "_target_": f"{keys.__module__}.{keys.__name__}"}}})
            try:
                instantiate(node.hydra[group])
            except InstantiationException as error:
                raise _to_input_error(error, node) from None


def find_plugin(cfg: DictConfig, group: str) -> type:
    """Find the class of a sweep's launcher or sweeper. Raises `InputError` naming the extra to install."""
    target = str(cfg.hydra[group]._target_)
    plugin = Plugins.instance().class_name_to_class.get(target)
    if plugin is None:
        extra = next((extra for part, extra in _EXTRAS.items() if part in target), None)
        how = f'pip install "tl_research[{extra}]"' if extra else f"install the package with {target}"
        option = f"hydra/{group}={cfg.hydra.runtime.choices[f'hydra/{group}']}"
        raise InputError(f"{option} is an extra that is not installed: {how}")
    return plugin


def _resolve(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """Return the config as resolved plain data with absolute paths, each group's option, and the run directory."""
    cfg = cfg.copy()
    chosen: Mapping[Any, Any] = {}
    directory = None
    if "hydra" in cfg:
        chosen, directory = cfg.hydra.runtime.choices, str(cfg.hydra.run.dir)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
    elif HydraConfig.initialized():  # a job's own configuration comes without Hydra's part
        chosen = HydraConfig.get().runtime.choices
    choices = {str(key): str(value) for key, value in chosen.items() if value and "/" not in str(key)}
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise InputError(f"{key} is needed: add {key}=..., see conf/{key.split('.')[0]}/") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    if isinstance(config.get("backbone"), dict):
        expand_backbones(config["backbone"])
    for key in _PATHS:
        group, name = key.split(".")
        value = config.get(group, {}).get(name)
        if isinstance(value, str | int) and value not in ("", "imagenet", "parts"):
            config[group][name] = str(Path(str(value)).expanduser().absolute())
    return config, choices, directory


def _to_input_error(error: InstantiationException, cfg: DictConfig) -> InputError:
    """Describe the first invalid value in one line."""
    match = re.search(r"full_key: (\S+)", str(error))
    prefix = [match.group(1)] if match else []
    cause = error.__cause__
    if isinstance(cause, InputError):
        return cause
    if "blocklisted" in str(error):
        return InputError(f"{'.'.join(prefix)}: {str(error).split(' is ')[0]} is refused: it could run any command")
    if isinstance(cause, ImportError) or "Error locating" in str(error):
        return InputError(f"{'.'.join([*prefix, '_target_'])}: {_import_failure(error)}")
    if not isinstance(cause, ValidationError):
        return InputError(f"{'.'.join(prefix) or 'config'}: {cause or str(error).splitlines()[0]}")
    first = cause.errors(include_url=False)[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, InputError):  # from a recipe that has named the whole key
        return raised
    words = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not first["loc"]:  # from a rule about several keys
        return CombinationError(".".join([*prefix, words]))
    key = ".".join([*prefix, *_path(first["loc"])])
    if first["type"] == "unexpected_keyword_argument":
        node = OmegaConf.select(cfg, prefix[0]) if prefix else cfg
        siblings = [".".join([*prefix, str(k)]) for k in node if k not in ("_target_", "hydra", first["loc"][0])]
        return InputError(f"{key}: there is no such key; {near(key, siblings)}")
    if first["type"].startswith("missing"):
        return InputError(f"{key} is needed")
    node = OmegaConf.select(cfg, prefix[0]) if prefix else cfg
    range_ = None if first["type"] == "value_error" else allowed(get_class(node["_target_"]), str(first["loc"][0]))
    return InputError(f"{_origin(cfg, key)}={shown(first['input'])}: {f'should be {range_}' if range_ else words}")


def _import_failure(error: BaseException) -> str:
    """Say why a module of the user's cannot be imported."""
    said = error.__cause__ or error
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of the two is there
        if isinstance(error, SyntaxError):
            return f"{error.filename}, line {error.lineno}: {error.msg}"
    lacks_itself = isinstance(error, ModuleNotFoundError) and f"module '{error.name}'" in str(said)
    if "is installed?" in str(said) and not lacks_itself:  # the module is there, and has raised this
        return f"the module raises {type(error).__name__}: {error}"
    return str(said)


def _path(location: Sequence[str | int]) -> list[str]:
    """Return pydantic's location without the parts that it adds for unions (`constrained-int`, `literal['all']`)."""
    return [str(part) for part in location[:2] if str(part).isidentifier() and part not in ("int", "float", "str")]


def _origin(cfg: DictConfig, key: str) -> str:
    """Return the key that the user sets: the source of an interpolation rather than the key that uses it."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group) if group else cfg
    if isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name):
        source = str(OmegaConf.to_container(node, resolve=False)[name])  # type: ignore[index, call-overload]
        if re.fullmatch(r"\$\{[\w.]+\}", source):
            return source[2:-1]
    return key
