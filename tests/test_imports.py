"""The structure: imports point one way, Hydra stays in its room, nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "tl_research"
IMPORTS_ALL = PACKAGE / "preload.py"
MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))

LAYERS = [
    [
        "errors",
        "progress",
        "recipe",
        "atomic",
        "lock",
        "blocks",
        "schedule",
        "checkpoint",
        "precision",
        "step",
        "cluster",
        "folding",
        "fused",
    ],
    ["runtime", "network", "networks", "optimizer", "classifier", "feature_store", "stock", "claims", "distribution"],
    ["weights", "data", "moved", "transfer", "probe", "trial"],
    ["backbone", "metrics", "engines", "nearest", "describe", "trainer"],
    ["head", "passes"],
    ["filling"],
    ["features"],
    ["run", "figures", "identity", "pool", "live", "feeds"],
    ["callbacks", "predict", "leaderboard"],
    ["report", "head_inputs"],
    ["at_once", "supply"],
    ["fitting"],
    ["evaluation"],
    ["experiment"],
    ["preload", "lr_find"],
    ["configure"],
    ["targets"],
    ["__main__", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
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


def test_every_module_has_its_layer() -> None:
    assert {room(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path: Path) -> None:
    upward = {used for used in rooms_used(path) if LEVEL[used] > LEVEL[room(path)]}
    assert not upward, f"{path.name} imports what stands above it"


def test_no_circle_of_rooms() -> None:
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        if path != PACKAGE / "__init__.py":
            uses.setdefault(room(path), set()).update(rooms_used(path))
    done: list[str] = []
    while len(done) < len(uses):
        free = [name for name in uses if name not in done and uses[name] <= set(done)]
        assert free, f"a circle among {sorted(set(uses) - set(done))}"
        done += free


def test_hydra_stays_at_the_door() -> None:
    allowed = {PACKAGE / "configure"}
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
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    drawing = {"food", "lookalikes", "paint", "scenes"}  # held by test_demo, through the pictures
    told = {
        "progress",
        "describe",
        "composition",
        "explain",
        "names",
        "trainer",
        "fitting",
        "figures",
        "runtime",
    }
    for path in MODULES:
        if path.stem not in {"__init__", "__main__", *drawing, *told}:
            assert path.stem in tests, path
