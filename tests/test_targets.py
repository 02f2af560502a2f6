"""Names that stay: what `_target_` gives, and what version 0.1 called its modules and classes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tl_research import compose, targets

OLD_NAMES = [
    line.split() for line in (ROOT / "tl_research" / "old_names.txt").read_text().splitlines() if line[0] != "#"
]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_target_is_a_recipe(name: str) -> None:
    assert hasattr(getattr(targets, name), "__pydantic_fields__")


@pytest.mark.parametrize(("old", "new"), OLD_NAMES, ids=[old for old, _ in OLD_NAMES])
def test_every_old_name_leads_to_something(old: str, new: str) -> None:
    module, _, name = new.rpartition(".")
    package = import_module(f"tl_research.{module}" if module else "tl_research")
    assert hasattr(package, name) or import_module(f"tl_research.{new}")


@pytest.mark.parametrize(
    ("statement", "warning"),
    [
        ("from tl_research.head import Head", "tl_research.head.Head is called tl_research.models.head.Head now"),
        ("from tl_research.trainer import Trainer", "is called tl_research.training.options.TrainOptions now"),
        ("from tl_research.features import Features", "is called tl_research.features.table.Features now"),
        ("from tl_research.weights.keras_file import contents", "tl_research.models.weights.keras_file.contents now"),
        ("from tl_research import head; head.MLP", "is called tl_research.models.head.MLP now"),
    ],
)
def test_an_old_import_works_and_warns(statement: str, warning: str) -> None:
    with pytest.warns(FutureWarning, match=warning):
        exec(statement)


def test_what_has_kept_its_name_raises_no_warning() -> None:
    from tl_research.data.decode import read_pixels

    assert callable(read_pixels)


@pytest.mark.parametrize("name", ["tl_research.nowhere", "tl_research.weights.nowhere"])
def test_what_never_was_is_an_import_error(name: str) -> None:
    with pytest.raises(ImportError):
        import_module(name)
    with pytest.raises(AttributeError):
        import_module("tl_research.features").Nonsense  # noqa: B018 - asking is the test


def test_a_users_file_with_old_paths_composes_and_warns(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("_target_: tl_research.head.Linear\ndropout: 0.5\n")
    with pytest.warns(FutureWarning, match=r"tl_research\.head\.Linear is called"):
        experiment = compose(["head=mine", "optimizer=adam"], config_dir=tmp_path)
    assert experiment.head == targets.Linear(dropout=0.5)


@pytest.mark.slow
def test_a_command_shows_the_warning_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("_target_: tl_research.head.Linear\ndropout: 0.0\n")
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config-dir",
        str(tmp_path),
        "head=mine",
        "backbone.weights=/no",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if "is called tl_research.models.head.Linear now" in line]
    assert len(lines) == 1, result.stderr
