"""The structure: imports point one way, Hydra stays in its room, nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "tl_research"
IMPORTS_ALL = PACKAGE / "sweeps" / "preload.py"
MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))

ROOMS = [
    ["__main__", "__init__"],
    ["commands"],
    ["sweeps"],
    ["config"],
    ["experiment"],
    ["reports", "serving"],
    ["evaluation"],
    ["training"],
    ["features"],
    ["backend"],
    ["runs"],
    ["data", "models"],
    ["metrics"],
    ["system"],
    ["errors", "recipe", "targets"],
]
"""From the door down: a room imports only from rooms further down the list, and none from its own line."""
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
HEAVY = {"tensorflow", "keras", "openvino", "sklearn", "scipy", "matplotlib", "h5py", "tensorboard", "kaggle"}


def room(path: Path) -> str:
    """The top-level module or package of ours that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    names = (name for _, name in imported(ast.parse(path.read_text())))
    parts = {name.split(".")[1] for name in names if name.startswith("tl_research.")}
    return (parts & set(LEVEL)) - {room(path), "__init__"}


def test_every_module_is_in_a_room() -> None:
    assert {room(path) for path in MODULES} <= set(LEVEL)


@each_module
def test_imports_point_down(path: Path) -> None:
    wrong = {used for used in rooms_used(path) if LEVEL[used] <= LEVEL[room(path)]}
    assert not wrong, f"{path.relative_to(PACKAGE)} imports what stands beside it or above"


def test_hydra_stays_at_the_door() -> None:
    allowed = {PACKAGE / "config"}
    for path in [*MODULES, ROOT / "train.py"]:
        names = {name.split(".")[0] for _, name in imported(ast.parse(path.read_text()))}
        if names & {"hydra", "omegaconf"}:
            assert path.parent in allowed, path


def at_import(node: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """What is imported as soon as the module is: not in functions, not for the type checker alone."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(node)
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if for_types else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from at_import(child)


@each_module
def test_nothing_heavy_is_imported_with_a_module(path: Path) -> None:
    heavy = [
        f"line {node.lineno}: {name}"
        for node, name in at_import(ast.parse(path.read_text()))
        if name.split(".")[0] in HEAVY
    ]
    assert not heavy or path == IMPORTS_ALL


def test_no_room_is_called_what_anything_could_be_called() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "base", "misc", "components"}


def test_every_module_is_named_in_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    drawing = {"food", "paint", "scenes"}  # tested through the pictures
    through_commands = {
        *("cluster_options", "exit_status", "hydra_internals", "job_outcome", "run_modes", "search_preflight"),
        *("secondary_worker", "step_setup"),
    }
    unnamed = {path.stem for path in MODULES if path.stem not in tests} - {"__init__", "__main__"}
    assert unnamed <= drawing | through_commands


def test_every_test_has_a_short_name() -> None:
    names = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py")))
    assert not [name for name in names if len(name) > 60]
