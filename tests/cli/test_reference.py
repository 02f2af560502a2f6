"""docs/reference: its pages are up to date, and name every key, file, metric, command and option that there is."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tests.conftest import ROOT
from tl_research import compose
from tl_research.__main__ import app
from tl_research.runs.run import FILES
from tl_research.runs.status import RunState

PAGES = ROOT / "docs" / "reference"
CONF = ROOT / "conf"


def named(page: str) -> set[str]:
    """All that stands in a page as code."""
    return set(re.findall(r"`([^`\n]+)`", (PAGES / page).read_text()))


def keys(content: Any, prefix: str = "") -> Iterator[str]:
    """The full keys of plain values, as a user types them."""
    if not isinstance(content, dict) or not content:
        yield prefix.rstrip(".")
        return
    for key, value in content.items():
        if key not in ("_target_", "defaults", "choices", "job_logging", "hydra_logging"):
            yield from keys(value, f"{prefix}{key}.")


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path}{name} ")
    if not hasattr(command, "commands"):
        yield path.strip(), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_generated_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAGES))
    for path, text in runpy.run_path(str(PAGES / "generate.py"))["pages"]().items():
        assert path.read_text() == text, f"{path.name} is stale: run python docs/reference/generate.py"


def test_a_stale_page_is_named_by_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PAGES))
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    generate = runpy.run_path(str(PAGES / "generate.py"))
    main = generate["main"]
    assert main() == 0
    stale = {PAGES / "configuration.md": "another text"}
    monkeypatch.setitem(main.__globals__, "pages", lambda: stale)
    assert main() == 1
    assert "configuration.md: stale" in capsys.readouterr().out


def test_every_key_of_the_default_configuration_is_listed() -> None:
    assert set(keys(compose([]).config)) - {"directory"} <= named("configuration.md")


@pytest.mark.parametrize("path", [CONF / "config.yaml", *sorted(CONF.glob("*/**/*.yaml"))], ids=lambda path: path.stem)
def test_every_key_and_option_of_conf_is_listed(path: Path) -> None:
    text = path.read_text()
    group = path.parent.relative_to(CONF).as_posix()
    prefix = "" if group == "." or "@package _global_" in text else f"{group.replace('/', '.')}."
    found = {key for key in keys(yaml.safe_load(text)) if key}
    listed = named("configuration.md")
    if "hydra.sweeper.params" not in text and not re.search(r"^ {4}params:", text, re.M):
        assert {f"{prefix}{key}" for key in found} <= listed
    assert group == "." or path.stem in listed


def test_every_key_has_a_range_and_a_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.+) \|$", (PAGES / "configuration.md").read_text(), re.M)
    assert len(rows) > 100
    assert not [row for row in rows if not row[2].strip() or not row[3].strip() or row[3].startswith("(")]


def test_every_file_and_key_of_a_run_is_listed(tmp_path: Path, colours: Path) -> None:
    overrides = ["backbone=tiny", "data=folder", f"data.root={colours}", "data/augment=light", "features.views=1"]
    overrides += ["features.test_views=1", "transfer=finetune", "transfer.backbone.epochs=1"]
    run = compose(overrides).run(tmp_path / "run")
    listed = named("run-directory.md")
    assert {
        name + ("/" if name in ("tensorboard", "export", "checkpoints", "check") else "") for name in FILES
    } <= listed
    assert {path.name + ("/" if path.is_dir() else "") for path in run.directory.iterdir()} <= listed
    assert set(json.loads((run.directory / "metrics.json").read_text())) <= listed
    assert set(json.loads((run.directory / "status.json").read_text())) <= listed
    assert {key for mistake in json.loads((run.directory / "mistakes.json").read_text()) for key in mistake} <= listed
    for name in ("history.csv", "predictions.csv"):
        with (run.directory / name).open() as file:
            assert {"p_CLASS" if key.startswith("p_") else key for key in next(csv.reader(file))} <= listed


def test_every_state_of_a_run_is_listed() -> None:
    assert set(RunState.__args__) <= named("run-directory.md")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_its_options_are_listed(name: str) -> None:
    (section,) = re.findall(rf"^### {re.escape(name)}\n(.*?)(?=^##|^<!--)", (PAGES / "cli.md").read_text(), re.M | re.S)
    for parameter in COMMANDS[name].params:
        for text in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar.strip("{}")]:
            assert f"`{text}`" in section


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_in_an_example(name: str) -> None:
    words, _, example = (COMMANDS[name].help or "").partition("\n\nExample: ")
    assert re.match(r"[A-Z][a-z]+ ", words)
    assert example.startswith(f"python -m tl_research {name}")


def test_every_variable_of_the_environment_is_listed() -> None:
    sources = [path for folder in ("tl_research", "hydra_plugins") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*sources, *CONF.rglob("*.yaml")])
    found = set(re.findall(r"""environ(?:\.get|\.setdefault|\.pop)?[\[(]["'](\w+)""", text))
    found |= set(re.findall(r"oc\.env:(\w+)", text)) | set(re.findall(r'"(TL_[A-Z]+)"', text))
    ours = {"PYTHONPATH", "XDG_CONFIG_HOME", "COLUMNS"}  # which only child processes, Kaggle's rules and tables read
    assert found - ours <= named("cli.md")
