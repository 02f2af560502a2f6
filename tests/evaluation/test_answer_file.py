"""A table of answers is written row by row; wherever its writer was killed, another one completes it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tl_research.errors import InputError
from tl_research.evaluation.answer_file import AnswerFile, choose_format
from tl_research.evaluation.answers import Kind
from tl_research.system.locks import try_lock

COLUMNS: dict[str, Kind] = {
    **{"path": "text", "prediction": "text", "p_a": "number", "error": "text"},
    **{"abstained": "flag", "prediction_set": "texts"},
}
PATHS = [Path(name) for name in ("a.jpg", 'b"\n,é.jpg', "a.jpg", "c.jpg")]
ROWS: list[list[Any]] = [
    ["a.jpg", "a", 1 / 3, "", False, ["a", "b"]],
    ['b"\n,é.jpg', "", "", "truncated", "", ""],
    ["a.jpg", "", 0.25, "", True, ["b"]],
    ["c.jpg", "b", 0.5, "", False, ["b"]],
]
BEGUN = {"run": "1", "top_k": 0, "threshold": 0.3}


def answer_file(output: Path, format_: Any, *, continues: bool = False, **changed: Any) -> AnswerFile:
    return AnswerFile(output, format_, COLUMNS, BEGUN | changed, continues=continues)


def write(table: AnswerFile, rows: list[list[Any]] | None = None) -> None:
    """Write rows and stop, by default all that are missing, and complete the table."""
    with closing(table):
        missing = table.missing(PATHS)
        for row in ROWS[len(ROWS) - len(missing) :] if rows is None else rows:
            table.write([row])
        if rows is None:
            table.finish()


@pytest.fixture(params=["csv", "jsonl"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"answers.{request.param}"
    write(answer_file(path, request.param))
    return path


def test_a_table_cut_anywhere_is_completed(output: Path) -> None:
    whole = output.read_bytes()
    for length in range(0, len(whole) + 1, 3):
        output.write_bytes(whole[:length])
        table = answer_file(output, output.suffix[1:], continues=True)
        write(table)
        assert output.read_bytes() == whole, length
        assert table.failed == 1


def test_rows_can_be_read_before_the_end(tmp_path: Path) -> None:
    table = answer_file(tmp_path / "a.jsonl", "jsonl")
    assert list(tmp_path.iterdir()) == []
    write(table, ROWS[:1])
    assert json.loads((tmp_path / "a.jsonl").read_text())["prediction_set"] == ["a", "b"]


def test_an_older_table_stays_until_the_new_one_is_complete(output: Path) -> None:
    older, format_ = output.read_bytes(), output.suffix[1:]
    write(answer_file(output, format_, threshold=0.5), ROWS[:2])
    assert output.read_bytes() == older
    table = answer_file(output, format_, threshold=0.5, continues=True)
    assert table.missing(PATHS) == PATHS[2:]
    output.write_bytes(b"")
    write(table)
    assert output.read_bytes() == older
    assert {path.name for path in output.parent.iterdir()} == {output.name, f".{output.name}.begun"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": "2"}, "with another run;"),
        ({"top_k": 3, "threshold": None}, "without --top-k and with --threshold 0.3;"),
    ],
)
def test_other_options_are_refused(output: Path, changed: dict[str, Any], message: str) -> None:
    before = output.read_bytes()
    with pytest.raises(InputError, match=message):
        answer_file(output, output.suffix[1:], continues=True, **changed)
    assert output.read_bytes() == before


def test_an_unknown_or_busy_table_is_refused(output: Path) -> None:
    format_ = output.suffix[1:]
    table = answer_file(output, format_, continues=True)
    lock = try_lock(output)
    with pytest.raises(InputError, match="another process is writing it"):
        table.finish()
    assert lock
    lock.close()
    output.with_name(f".{output.name}.begun").unlink()
    with pytest.raises(InputError, match="it is not known with which"):
        answer_file(output, format_, continues=True)


@pytest.mark.parametrize(("format_", "line"), [("csv", "a,b\n"), ("jsonl", "x\n"), ("jsonl", "[]\n"), ("parquet", "x")])
def test_a_changed_table_is_refused(tmp_path: Path, format_: Any, line: str) -> None:
    if format_ == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / "answers"
    write(answer_file(output, "jsonl"), ROWS)
    output.write_text(line)
    with pytest.raises(InputError, match="it has been changed; leave out --continue"):
        answer_file(output, format_, continues=True)


def test_parquet_is_made_of_the_rows_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("tl_research.evaluation.answer_file.CELLS_HELD", 2 * len(COLUMNS))
    output = tmp_path / "a.parquet"
    write(answer_file(output, "parquet"), ROWS[:2])
    assert not output.exists()
    write(answer_file(output, "parquet", continues=True))
    expected = [
        {
            name: None if cell == "" else pytest.approx(cell) if name == "p_a" else cell
            for name, cell in zip(COLUMNS, row, strict=True)
        }
        for row in ROWS
    ]
    assert parquet.read_table(output).to_pylist() == expected
    assert parquet.ParquetFile(output).num_row_groups == 2
    more = answer_file(output, "parquet", continues=True)
    assert more.missing([*PATHS, Path("d.jpg")]) == [Path("d.jpg")]
    with closing(more):
        more.write([["d.jpg", *ROWS[0][1:]]])
        more.finish()
    assert parquet.read_table(output).to_pylist()[:4] == expected
    assert parquet.read_table(output).num_rows == 5
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", ".a.parquet.begun"}


@pytest.mark.parametrize(
    ("given", "name", "chosen"),
    [(None, None, "csv"), (None, "a.TXT", "csv"), (None, "a.JSONL", "jsonl"), ("csv", "a.jsonl", "csv")],
)
def test_the_suffix_says_the_format(given: Any, name: str | None, chosen: str) -> None:
    assert choose_format(given, Path(name) if name else None) == chosen


def test_parquet_needs_a_file_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--output"):
        choose_format("parquet", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tl_research\[parquet\]"):
        choose_format(None, Path("a.parquet"))
