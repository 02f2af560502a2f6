"""Read the keys of conf/: their values and comments, and their ranges from the types of the recipes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class

from tl_research.config.constraints import allowed
from tl_research.sweeps.cluster_options import Local, OnRay, Slurm

CONF = Path(__file__).resolve().parents[2] / "conf"
WHOLE = ("job_logging", "hydra_logging")  # mappings whose keys are not ours
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
RANGES = {
    "optimizer": "an option of `optimizer`, or null",
    "params": "names and values",
    "choose_by": "'validation' or 'folds'",
    "sampler": "'tpe' or 'random'",
    "pruner": "'median' or 'none'",
    "batch": "a whole number of at least 1 or null",
    "max_batch_size": "a whole number of at least 1 or null",
    "study": "text or null",
    "address": "text or null",
    "num_cpus": "a number greater than 0 or null",
    "object_store_memory": "a whole number or null",
}  # of keys without a recipe
LAUNCHERS = {"LocalLauncher": Local, "SlurmLauncher": Slurm, "RayLauncher": OnRay}  # the plugins may not be installed
MOST_VALUES = 5  # of a default, in a cell


@dataclass(frozen=True)
class Key:
    """One key of one option, or of config.yaml: its default as typed, its range and its meaning in words."""

    name: str
    default: str
    recipe: type | None
    range: str
    meaning: str
    option: str = ""

    @property
    def field(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def read(path: Path, prefix: str, recipe: type | None = None) -> list[Key]:
    """Read the keys of one file of conf/, with those of the files that it extends (`defaults: [none, /stage@head]`).
    `recipe` is that of the file which extends this one."""
    text = path.read_text()
    root, content = yaml.compose(text), yaml.safe_load(text)
    recipe = recipe_of(content["_target_"]) if "_target_" in content else recipe
    names = [name for name in content.get("defaults") or [] if isinstance(name, str)]
    keys: dict[str, Key] = {}
    for name in names if "_self_" in names else [*names, "_self_"]:
        file, _, package = name.partition("@")
        source = (CONF if file.startswith("/") else path.parent) / f"{file.strip('/')}.yaml"
        below = "" if package in ("", "_here_") else f"{package}."
        for key in _walk(root, text, prefix, recipe) if name == "_self_" else read(source, prefix + below, recipe):
            before = keys.get(key.name, key)
            keys[key.name] = replace(
                key, range=before.range, meaning=key.meaning or before.meaning, recipe=before.recipe
            )
    return [replace(key, option=path.stem) for key in keys.values()]


def _walk(
    node: yaml.MappingNode, text: str, prefix: str, outer: type | None = None, comment: str = ""
) -> Iterator[Key]:
    recipe = next((recipe_of(value.value) for key, value in node.value if key.value == "_target_"), outer)
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value in ("_target_", "defaults"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            behind = _comment(text, value) if value.flow_style else ""
            if own := _comment(text, key) or (behind if key.value in WHOLE else ""):
                yield Key(name, "", recipe, "keys and values, or null", own)
            yield from () if key.value in WHOLE else _walk(value, text, f"{name}.", comment=behind)
            continue
        default = text[value.start_mark.index : value.end_mark.index]
        kind = KINDS.get(type(yaml.safe_load(default)).__name__, "")
        words = (allowed(recipe, key.value) if recipe else None) or RANGES.get(key.value, kind)
        yield Key(name, default, recipe, words, _comment(text, value) or comment)


def recipe_of(target: str) -> type:
    """Find the recipe that a `_target_` is or, being a plugin of Hydra, has."""
    name = target.rpartition(".")[2]
    found: Any = LAUNCHERS.get(name) or get_class(target)
    return getattr(found, "recipe", found)


def _comment(text: str, node: yaml.Node) -> str:
    """Read the comment behind a node, on its line and on the comment lines that follow."""
    found = re.match(r":?[ ]*#(.*(?:\n +#.*)*)", text[node.end_mark.index :])
    return re.sub(r"\n +#", "", found[1]).strip() if found else ""


def explained(keys: Sequence[Key]) -> list[Key]:
    """Explain keys without a comment by that of the same key in another option, of the same field in another stage, or
    by the sentences of the recipe's docstring that name them."""
    known = {(key.recipe, key.field): key for key in reversed(keys) if key.meaning}
    named = {key.name: key for key in reversed(keys) if key.meaning}
    done = []
    for key in keys:
        source = named.get(key.name) or known.get((key.recipe, key.field)) or key
        done.append(replace(key, meaning=key.meaning or source.meaning or _sentences(key)))
    return done


def _sentences(key: Key) -> str:
    doc = " ".join(inspect.getdoc(cls) or "" for cls in getattr(key.recipe, "__mro__", ()) if cls is not object)
    found = [sentence for sentence in re.split(r"(?<=\.)\s+", doc) if f"`{key.field}`" in sentence]
    return " ".join(" ".join(found).split())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Make a table in Markdown, and an empty line."""
    lines = [header, ["---"] * len(header), *rows]
    return [*("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines), ""]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|") if "`" in cell else cell.replace("|", "\\|").replace("*", "\\*")


def code(values: Iterable[str]) -> str:
    """Join values, each as code."""
    return ", ".join(f"`{value}`" for value in values)


def _by(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for value, option in pairs:
        groups.setdefault(value, []).append(option)
    return groups


def rows(keys: Sequence[Key], options: Sequence[str]) -> Iterator[list[str]]:
    """Make a row for each key of a group, with what differs between its options."""
    for name in dict.fromkeys(key.name for key in keys):
        same = [key for key in keys if key.name == name]
        by = _by((key.default, key.option) for key in same).items()
        (value, _), *others = sorted(by, key=lambda item: (options[0] not in item[1], -len(item[1])))
        default = "; ".join([code([value] if value else []), *(f"`{v}` in {code(o)}" for v, o in others)])
        if len(others) >= MOST_VALUES:
            default = "the name of the option" if all(k.default == k.option for k in same) else "differs by option"
        (words, _), *more = _by((key.meaning, key.option) for key in same).items()
        meaning = "; ".join([words, *(f"{code(o)}: {w}" for w, o in more if w)])
        if len(same) < len(options):
            missing = [option for option in options if option not in {key.option for key in same}]
            few = f"not in {code(missing)}" if len(missing) < len(same) else f"only in {code(k.option for k in same)}"
            meaning = f"{meaning} ({few})"
        yield [f"`{name}`", default, same[0].range, meaning]
