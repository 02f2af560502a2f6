"""Progress in a notebook: a line of text, without ipywidgets."""

from __future__ import annotations

import pytest
from rich.console import Console

from tl_research.system import console, progress
from tl_research.system.progress import track


@pytest.mark.parametrize(("seconds", "expected"), [(0, ["50 %", "100 %"]), (60, [])])
def test_a_notebook_shows_one_line(monkeypatch: pytest.MonkeyPatch, seconds: int, expected: list[str]) -> None:
    display = pytest.importorskip("IPython.display", reason="needs tl_research[notebook]")
    shown: list[str] = []

    class Line:
        def __init__(self, data: dict[str, str], **options: bool):
            self.update(data)

        def update(self, data: dict[str, str], raw: bool = True) -> None:
            shown.append(data["text/plain"])

    monkeypatch.setattr(display, "display", Line)
    monkeypatch.setattr(console, "progress_console", Console(force_jupyter=True))
    monkeypatch.setattr(progress, "SECONDS_A_LINE", seconds)
    assert list(track("ab", "reading")) == ["a", "b"]
    assert shown == [f"reading: {text} in 0 s" for text in expected]
