"""Whatever can change a number changes a job's identity, and nothing else does."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tl_research import Run, compose
from tl_research.data.datamodule import DataModule
from tl_research.experiment.experiment import Experiment
from tl_research.runs import identity as module
from tl_research.runs.identity import code, identity

PACKAGE = ROOT / "tl_research"


@pytest.fixture(autouse=True)
def _code_is_looked_at_anew() -> Iterator[None]:
    code.cache_clear()
    yield
    code.cache_clear()


@pytest.fixture(scope="module")
def experiment(colours: Path) -> Experiment:
    return compose(["backbone=tiny", "data=folder", f"data.root={colours}"])


@pytest.fixture(scope="module")
def data(experiment: Experiment) -> DataModule:
    return experiment.data.load()


@pytest.fixture
def config(experiment: Experiment) -> dict[str, Any]:
    return copy.deepcopy(experiment.config)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"some weights")
    return path


def leaves(config: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def changed(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = ["another value", node[path[-1]]]
    return config


# What is asked for


def test_every_value_counts_but_those_that_only_say_where_things_go(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    without = {path for path in leaves(config) if identity(changed(config, path), data, []) == before}
    named = {".".join(path) for path in without if path[0] != "choices"}
    # Weights that are missing have no content, which counts; what is to be done about it need not.
    places = {"directory", "data.cache", "features.store", "features.max_gb"}
    assert named <= {*places, "fresh", "resume", "shard", "missing_weights", "trainer.checkpoint_minutes"}
    assert {"fresh", "features.store", "features.max_gb"} <= named
    assert {"seed", "data.root", "backbone.image_size", "callbacks.tensorboard.samples"} <= {
        ".".join(path) for path in leaves(config)
    } - named


def test_a_key_more_or_less_counts(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    assert identity({**config, "callbacks": {}}, data, []) != before
    assert identity({**config, "another": 1}, data, []) != before
    assert identity({k: v for k, v in config.items() if k != "monitor"}, data, []) != before


def test_a_key_is_left_out_only_where_it_stands_for_a_place(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    assert identity({**config, "store": "elsewhere"}, data, []) != before
    assert identity({**config, "optimizer": {**config["optimizer"], "fresh": True}}, data, []) != before


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(experiment: Experiment, data: DataModule, random: Any) -> None:
    def shuffled(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        keys = list(node)
        random.shuffle(keys)
        return {key: shuffled(node[key]) for key in keys}

    assert identity(shuffled(experiment.config), data, []) == identity(experiment.config, data, [])


@pytest.mark.parametrize(
    ("override", "counts"),
    [
        ("seed=1", True),
        ("head=mlp", True),
        ("backbone.weights=null", False),  # which it is already
        ("callbacks=none", True),
        ("threads=1", True),
        ("missing_weights=random", False),
        ("features.store=null", False),
        ("features.store=/elsewhere", False),
        ("features.max_gb=1", False),
        ("fresh=true", False),
        ("shard=0/2", False),
    ],
)
def test_overrides_count_where_they_could_change_a_number(
    experiment: Experiment, data: DataModule, colours: Path, override: str, counts: bool
) -> None:
    overrides = ["head=linear"] if override.startswith("head") else []
    other = compose(["backbone=tiny", "data=folder", f"data.root={colours}", *overrides, *_needed(override), override])
    mine = compose(["backbone=tiny", "data=folder", f"data.root={colours}", *overrides, *_needed(override)])
    assert (identity(other.config, data, []) != identity(mine.config, data, [])) == counts


def _needed(override: str) -> list[str]:
    return ["optimizer=adam"] if override == "head=mlp" else []


# The images


CHANGES: dict[str, Callable[[DataModule], DataModule]] = {
    "an image's content": lambda data: replace(data, digests=[b"\0" * 32, *data.digests[1:]]),
    "the order of images": lambda data: replace(data, digests=list(reversed(data.digests))),
    "a label": lambda data: replace(data, labels=np.array([1 - data.labels[0], *data.labels[1:]])),
    "a split": lambda data: replace(data, split_of=np.array(["test", *data.split_of[1:]])),
    "an image less": lambda data: replace(
        data, digests=data.digests[1:], labels=data.labels[1:], split_of=data.split_of[1:]
    ),
    "a class name": lambda data: replace(data, class_names=["azure", *data.class_names[1:]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_changes_with(config: dict[str, Any], data: DataModule, change: str) -> None:
    assert identity(config, CHANGES[change](data), []) != identity(config, data, [])


def test_which_group_an_image_is_of_counts(config: dict[str, Any], data: DataModule) -> None:
    """Cross-validation keeps groups together, so another grouping chooses another penalty."""
    groups = np.array(["a", "b"] * (len(data) // 2))
    one, other = replace(data, groups=groups), replace(data, groups=np.sort(groups))
    assert identity(config, one, []) != identity(config, other, [])


def test_where_images_lie_and_what_was_set_aside_does_not_count(config: dict[str, Any], data: DataModule) -> None:
    moved = replace(data, root=Path("/elsewhere"), paths=[Path("/elsewhere") / path.name for path in data.paths])
    assert identity(config, moved, []) == identity(config, data, [])


# Weights and code


def test_it_changes_with_the_content_of_weights_and_not_with_their_place(
    config: dict[str, Any], data: DataModule, weights: Path
) -> None:
    before = identity(config, data, [weights])
    assert before != identity(config, data, [])
    moved = weights.rename(weights.with_name("moved.h5"))
    assert identity(config, data, [moved]) == before
    moved.write_bytes(b"other weights")
    assert identity(config, data, [moved]) != before


def test_random_weights_for_want_of_others_are_another_job(data: DataModule, colours: Path, weights: Path) -> None:
    def asked() -> str:
        options = ["backbone=tiny", f"backbone.weights={weights}", "missing_weights=random"]
        experiment = compose([*options, "data=folder", f"data.root={colours}"])
        return identity(experiment.config, data, experiment.start.files())

    there = asked()
    weights.unlink()
    assert asked() != there


def test_two_files_are_not_one_of_both_contents(config: dict[str, Any], data: DataModule, tmp_path: Path) -> None:
    def named(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    a, b = named("a", b"one"), named("b", b"two")
    found = [identity(config, data, files) for files in ([a, b], [b, a], [named("c", b"onetwo")], [a], [])]
    assert len(set(found)) == 5


def test_it_changes_with_a_version(config: dict[str, Any], data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(config, data, [])
    monkeypatch.setattr(module, "versions", lambda: {"version_keras": "99"})
    assert identity(config, data, []) != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of our sources, which `code` takes for itself."""
    for source in PACKAGE.rglob("*.py"):
        target = tmp_path / "tl_research" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    monkeypatch.setattr(module, "__file__", str(tmp_path / "tl_research" / "identity.py"))
    return tmp_path / "tl_research"


def code_of() -> str:
    code.cache_clear()
    return code()


def counted(package: Path) -> set[str]:
    """Modules whose content is in the code's hash."""
    before, found = code_of(), set()
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        source.write_bytes(content + b"\n")
        if code_of() != before:
            found.add(source.relative_to(package).as_posix())
        source.write_bytes(content)
    assert code_of() == before
    return found


def imported(path: Path) -> set[str]:
    """Modules of ours that a module imports, at its top or later, as paths."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        if name.startswith("tl_research."):
            place = Path(*name.split(".")[1:])
            found |= {path.as_posix() for path in (place.with_suffix(".py"), place / "__init__.py")}
    return {name for name in found if (PACKAGE / name).is_file()}


# Modules that a run imports and that are left out on purpose: they show, they delete what is computed anew when missed
# (stock), or they end a run early, which then is pruned and not done (trial). All else that a run reaches counts.
NOT_COMPUTING = {"describe.py", "figures.py", "progress.py", "stock.py", "trial.py"}


def test_all_that_a_run_imports_counts_but_what_cannot_change_a_number(package: Path) -> None:
    reached, new = set(), {"experiment.py", "callbacks.py"}
    while new:
        reached |= new
        new = {name for source in new for name in imported(PACKAGE / source)} - reached
    # What a config names is built without being imported by the experiment's module.
    reached |= {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("networks/*.py")}
    assert reached - counted(package) <= NOT_COMPUTING


def test_what_only_shows_starts_or_reads_does_not_count(package: Path) -> None:
    found = counted(package)
    assert not found & {"pool.py", "live.py", "leaderboard.py", "report.py", "__main__.py", "configure/jobs.py"}
    assert {"experiment.py", "data/decode.py", "weights/matching.py", "networks/tiny.py", "optimizer.py"} <= found


def test_a_module_that_is_renamed_new_or_gone_counts(package: Path) -> None:
    before = code_of()
    (package / "another.py").write_text("")
    assert code_of() != before
    (package / "another.py").rename(package / "renamed.py")
    renamed = code_of()
    (package / "renamed.py").unlink()
    assert before != renamed != code_of() == before


def test_what_is_no_source_does_not_count(package: Path) -> None:
    before = code_of()
    (package / "README.md").write_text("# docs")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "head.cpython-311.pyc").write_bytes(b"compiled")
    assert code_of() == before


# What it is for


@pytest.mark.slow
def test_a_job_that_is_done_is_kept_and_one_that_is_another_is_not(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*overrides: str) -> Run:
        options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}", "callbacks=none"]
        return compose([*options, *overrides]).run(tmp_path / "run", "resume")

    first = asked()
    assert not first.kept
    kept = asked("features.store=null", f"features.max_gb={5}")
    assert kept.kept
    assert kept.metrics["test_accuracy"] == first.metrics["test_accuracy"]
    monkeypatch.setattr(module, "code", lambda: "other code")
    assert not asked().kept
    assert asked().kept
    assert not asked("fresh=true").kept
