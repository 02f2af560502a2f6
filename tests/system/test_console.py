"""The console: tables and lines as they are given, and silence on request."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tl_research import compose
from tl_research.system import console
from tl_research.system.console import make_table, show, show_error, show_table, silenced


def test_text_is_shown_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"[bold]a[/bold] :smile: {'x' * 300}"
    table = make_table("[b]", "", "n")
    table.add_row("[red]", "1")
    show(text, Path("a", "b"))
    show_table(table)
    first, second, title, _, _, _, row, *_ = capsys.readouterr().out.splitlines()
    assert (first, second, title.strip(), row.split()) == (text, "a/b", "[b]", ["[red]", "1"])


def test_a_reader_that_leaves_does_not_end_the_process() -> None:
    program = (
        "from tl_research.system.console import show\nfor n in range(20000): show(n, '\\udcff')\nassert n == 19999"
    )
    command = ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | head -n 2', sys.executable, program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n\\udcff\n", "")


def test_silence_spares_warnings_and_errors(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with silenced():
        with silenced():
            show("a line")
        logging.getLogger("tl_research.somewhere").info("a line")
        logging.getLogger("tl_research.somewhere").warning("a warning")
        show_error("an error")
        assert not console.is_watched()
    assert capsys.readouterr() == ("", "an error\n")
    assert caplog.messages == ["a warning"]


def test_silence_ends_with_the_block(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), silenced():
        raise KeyError
    with silenced(False):
        show("a line")
    logging.getLogger("tl_research.somewhere").info("another")
    assert capsys.readouterr().out == "a line\n"
    assert caplog.messages == ["another"]


def test_a_silent_run_prints_nothing(
    tmp_path: Path, colours: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}", "transfer=finetune",
               "transfer.backbone.epochs=1"]  # fmt: skip
    monkeypatch.setattr(console, "progress_console", Console(stderr=True, force_terminal=True))  # draws bars
    run = compose([*options, "verbose=false"]).run(tmp_path / "silent")
    assert capfd.readouterr() == ("", "")
    again = compose(options).run(tmp_path / "again")
    output, bars = capfd.readouterr()
    assert "results" in output
    assert bars
    assert run.metrics["test_loss"] == again.metrics["test_loss"]
