"""What the commands' own usage errors look like."""

from __future__ import annotations

import pytest

from tl_research import __main__ as commands


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("predct RUN", "No such command 'predct'. Did you mean 'predict'?; python -m tl_research --help lists"),
        ("predict", "Missing argument 'RUN'; python -m tl_research predict --help lists"),
        ("predict RUN a.jpg --formt csv", "No such option: --formt (Possible options: --format); python"),
        ("predict RUN a.jpg --top-k few", "Invalid value for '--top-k':"),
        ("features lst", "No such command 'lst'. Did you mean 'list'?; python -m tl_research features --help lists"),
    ],
)
def test_a_usage_error_is_one_line(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tl_research", *typed.split()])
    monkeypatch.setattr(commands, "exit_now", exit)
    with pytest.raises(SystemExit, match="2"):
        commands.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert said.split("python")[0] in line
    assert "--help lists" in line
