"""`resume=RUN`: rebuild a run from its own directory. A directory is data: it names our own recipes, and code of
the user's is imported only if the command names it, too."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from tl_research.config.compose import make
from tl_research.errors import InputError
from tl_research.runs.run import Run
from tl_research.targets import current_name

if TYPE_CHECKING:
    from tl_research.data.sources import Source
    from tl_research.experiment.experiment import Experiment
    from tl_research.runs.reader import RunReader

KEY = "resume="
OUR_NETWORKS = ("tl_research.networks.", "tl_research.models.networks.")


def asked(overrides: Sequence[str]) -> bool:
    """Whether a command resumes an earlier run."""
    return any(text.startswith(KEY) and text != f"{KEY}null" for text in overrides)


def named(overrides: Sequence[str]) -> Path:
    """Return the run directory that `resume=` names; InputError if there are two."""
    given = [text.removeprefix(KEY).strip("'\"") for text in overrides if text.startswith(KEY)]
    if len(given) > 1:
        raise InputError(f"resume={given[1]}: resume={given[0]} is asked for, too; give one run")
    return Path(given[0]).expanduser().absolute()


def interruption(directory: Path) -> str:
    """Say how to go on with an interrupted run; if it had not begun there is nothing to go on with."""
    if not (directory / "config.yaml").is_file():
        return "interrupted"
    code = [f"{key}={value}" for key, value in _code(Run(directory).config)]
    return f"interrupted; go on with: {shlex.join(['python', 'train.py', f'{KEY}{directory}', *code])}"


def resumed(overrides: Sequence[str]) -> Experiment:
    """Build the experiment of the run that `resume=` names: it continues the run, or starts over with `fresh=true`.

    Raises:
        InputError: there is no such run, or there are other overrides.
    """
    directory = named(overrides)
    run = Run.open(directory)
    if not run.config:
        state = "a damaged" if (directory / "config.yaml").is_file() else "no"
        raise InputError(f"resume={directory}: the run has {state} config.yaml to go on from; give its command again")
    if "ensemble" in run.config:
        raise InputError(f"resume={directory}: it is an ensemble, which is not trained; make a new one from its sweep")
    given = {text for text in overrides if not text.startswith(KEY)} - {"fresh=true", "fresh=false"}
    config = _with_current_targets(run.config)
    code = [f"{key}={value}" for key, value in _code(config)]
    other = sorted(given - set(code))
    if other:
        raise InputError(f"{other[0]}: resume={directory} takes all from the run; leave it out, or begin a new run")
    missing = [name for name in code if name not in given]
    if missing:
        raise InputError(
            f"resume={directory}: the run is made with code of yours, which a run directory may not choose; "
            f"add {' '.join(missing)}"
        )
    config.pop("choices", None)
    experiment = make(config, OmegaConf.create(config))
    fresh = "fresh=true" in overrides
    return replace(experiment, config=run.config, directory=str(directory), resume=str(directory), fresh=fresh)


def source_of(run: RunReader) -> Source:
    """Build the data source of a run, to have its images once more. Raises `InputError` if it is code of the user's."""
    config = _with_current_targets(run.config.get("data", {}))
    for key, value in _code(config, "data."):
        raise InputError(f"{run.directory}: its images come from code of yours ({key}={value}), which is not run here")
    source: Source = make(config, OmegaConf.create(config))
    return source


def _with_current_targets(config: Any) -> Any:
    """Replace the `_target_`s of version 0.1 by today's; an old run needs no warning for each of them."""
    if isinstance(config, list):
        return [_with_current_targets(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    current = {key: _with_current_targets(value) for key, value in config.items()}
    target = current.get("_target_")
    if isinstance(target, str) and target.startswith("tl_research."):
        name = current_name(target.removeprefix("tl_research."))
        current["_target_"] = f"tl_research.{name}" if name else target
    return current


def _code(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and value of the config's entries that name code other than ours."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            builds = key == "build" and prefix.startswith("backbone.") and not str(value).startswith(OUR_NETWORKS)
            if builds or (key == "_target_" and not _is_ours(value)):
                yield f"{prefix}{key}", str(value)
            else:
                yield from _code(value, f"{prefix}{key}.")
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _code(value, f"{prefix}{number}.")


def _is_ours(target: Any) -> bool:
    """Whether a target is one of our recipes, without importing other code."""
    if not isinstance(target, str) or not target.startswith("tl_research."):
        return False
    try:
        return hasattr(get_class(target), "__pydantic_fields__")
    except Exception:
        return False
