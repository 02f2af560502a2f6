"""A table of answers that is written row by row, and that can be continued when its writer was killed."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from typing_extensions import override

from tl_research.data.formats import IMAGE_SUFFIXES
from tl_research.errors import InputError
from tl_research.evaluation.answers import Kind, path_text
from tl_research.runs.run import csv_lines
from tl_research.runs.status import STATUS
from tl_research.system.files import replaceable, write_atomically
from tl_research.system.locks import try_lock

Format = Literal["csv", "jsonl", "parquet"]

SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
CELLS_HELD = 1_000_000
"""Cells of a Parquet file that are held in memory, and make a row group."""


def choose_format(given: Format | None, output: Path | None) -> Format:
    """Return the format that is given, or that a file's suffix says, or CSV. Raises `InputError` if it cannot be
    written."""
    suffix = output.suffix.lower() if output else ""
    chosen: Format = given or SUFFIXES.get(suffix, "csv")
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"--output {output}: that is the name of an image, and answers would replace it; name a table")
    if given is None and suffix not in ("", ".csv", ".txt", *SUFFIXES):
        raise InputError(f"--output {output}: give --format, or a name that ends on .csv, {', '.join(SUFFIXES)}")
    if chosen == "parquet" and output is None:
        raise InputError("--format parquet: it cannot be printed; give a file with --output")
    if chosen == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError('Parquet needs pip install "tl_research[parquet]"; or give --format csv')
    return chosen


def format_lines(chosen: Format, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format rows of answers as lines, numbers to 8 significant digits. JSON has null where CSV has an empty cell, and
    a list where CSV has names between `|`."""
    if chosen == "csv":
        return csv_lines([[_as_text(cell) for cell in row] for row in rows])
    objects = (dict(zip(header, map(_as_json, row), strict=True)) for row in rows)
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in objects)


def _as_text(cell: Any) -> Any:
    if isinstance(cell, list):
        return "|".join(cell)
    return str(cell).lower() if isinstance(cell, bool) else cell


def _as_json(cell: Any) -> Any:
    if isinstance(cell, float):
        return float(f"{cell:.8g}")
    return None if cell == "" else cell


class AnswerPrinter:
    """Prints answers on standard output as they come."""

    def __init__(self, chosen: Format, columns: Mapping[str, Kind]):
        self.failed = 0
        """The rows with a reason in place of an answer."""
        self._format, self._columns = chosen, columns
        self._stdout, self._begun = sys.stdout, False

    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """List the images that have no row yet: all."""
        return list(paths)

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows; they can be read at once."""
        if not self._begun:
            self._begin()
            self._begun = True
        self._put(format_lines(self._format, list(self._columns), rows))
        error = list(self._columns).index("error")
        self.failed += sum(bool(row[error]) for row in rows)

    def finish(self) -> None:
        """Complete the table."""

    def close(self) -> None:
        """Let go of it, complete or not."""

    def _begin(self) -> None:
        if self._format == "csv":
            self._put(csv_lines([list(self._columns)]))

    def _put(self, text: str) -> None:
        # While a progress bar is drawn, sys.stdout prints above it on the bar's terminal; rows for a file must not.
        stream = sys.stdout if self._stdout.isatty() else self._stdout
        stream.write(text)
        stream.flush()


class AnswerFile(AnswerPrinter):
    """Writes answers to a file, from the beginning or from where an earlier process was ended.

    Rows go straight to a new file. Where there is one already, which stays until the new one is complete, and for
    Parquet, they go to `.NAME.partial` beside it. `.NAME.begun` notes the run and the options. Nothing is written
    before there are rows.

    Raises:
        InputError: there is no folder for it; it is no regular file, or a run's own; to continue, the file was begun
            with another run or other options, or it is not known with which; or another process writes it.
    """

    def __init__(
        self, output: Path, chosen: Format, columns: Mapping[str, Kind], begun: Mapping[str, Any], *, continues: bool
    ):
        super().__init__("csv" if chosen == "csv" else "jsonl", columns)
        if output.is_dir():
            raise InputError(f"--output {output}: it is a folder; name a file")
        try:
            output = replaceable(output)
        except FileExistsError as error:
            raise InputError(f"--output {output}: {error.strerror}; leave out --output to print") from None
        if not output.absolute().parent.is_dir():
            raise InputError(f"--output {output}: there is no folder {output.parent}")
        self._output, self._is_parquet, self._about = output, chosen == "parquet", begun
        self._partial, self._note = (output.with_name(f".{output.name}.{end}") for end in ("partial", "begun"))
        has_partial, has_output = self._partial.exists(), output.exists()
        if has_output and not self._note.exists() and (output.parent / STATUS).exists():
            raise InputError(f"--output {output}: it is a file of the run in {output.parent}; name another")
        self._continues = continues and (has_partial or has_output)
        is_beside = has_partial if self._continues else has_output
        self._path = self._partial if is_beside or self._is_parquet else output
        self._is_packed = self._continues and self._is_parquet and not has_partial
        self._end, self._done = 0, Counter[str]()
        if self._continues:
            self._refuse_other()
            for row, end in self._rows():
                self._end = end
                self._done[row["path"]] += 1
                self.failed += bool(row["error"])

    @override
    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """List the images that have no row yet, as often as it lacks."""
        left, missing = self._done.copy(), []
        for path in paths:
            left[path_text(path)] -= 1
            if left[path_text(path)] < 0:
                missing.append(path)
        return missing

    @override
    def finish(self) -> None:
        """Complete the table and put it in its place."""
        self.write([])
        if self._is_parquet:
            _pack(self._path, self._output, self._columns)
            self._path.unlink()
        elif self._path != self._output:
            self._path.replace(self._output)

    @override
    def close(self) -> None:
        """Let another process write it, complete or not."""
        if self._begun:
            self._file.close()
            self._lock.close()

    @override
    def _begin(self) -> None:
        """Cut off a line that is not whole, and all lines of a table that is not to be continued."""
        lock = try_lock(self._path)
        if lock is None:
            raise InputError(f"--output {self._output}: another process is writing it")
        if self._path == self._output:
            self._partial.unlink(missing_ok=True)
        self._lock, self._file = lock, self._path.open("r+b")
        self._file.truncate(self._end)
        self._file.seek(self._end)
        write_atomically(self._note, json.dumps(dict(self._about), ensure_ascii=False) + "\n")
        if self._is_packed:
            for row, _ in self._rows():
                self._put(json.dumps(row, ensure_ascii=False) + "\n")
        elif self._end == 0:
            super()._begin()

    @override
    def _put(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()

    def _rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each whole row, and where it ends in the file."""
        if self._is_packed:
            yield from ((row, 0) for row in _unpack(self._output))
            return
        with self._path.open("rb") as file:
            if self._format == "csv":
                yield from _csv_rows(file, list(self._columns), self._output)
            else:
                yield from _json_rows(file, self._output)

    def _refuse_other(self) -> None:
        begun: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):
            begun = dict(json.loads(self._note.read_text()))
        if not begun:
            raise InputError(
                f"--continue: {self._output}: it is not known with which run and options it was begun ({self._note} is "
                f"missing); leave out --continue to begin anew"
            )
        other = [_words(key, begun.get(key)) for key, value in self._about.items() if begun.get(key) != value]
        if other:
            raise InputError(
                f"--continue: {self._output} was begun {' and '.join(other)}; give the same again, or leave out "
                f"--continue to begin anew"
            )


def _words(key: str, value: Any) -> str:
    option = f"--{key.replace('_', '-')}"
    if key == "run":
        return "with another run"
    if value is True:
        return f"with {option}"
    return f"with {option} {value}" if value else f"without {option}"


def _csv_rows(file: BinaryIO, header: list[str], output: Path) -> Iterator[tuple[dict[str, Any], int]]:
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                yield line.decode(errors="replace")

    with suppress(csv.Error):  # the file ends within quotes
        for number, cells in enumerate(csv.reader(lines(), strict=True)):
            if len(cells) != len(header) or (number == 0 and cells != header):
                raise _changed(output)
            if number:
                yield dict(zip(header, cells, strict=True)), end


def _json_rows(file: BinaryIO, output: Path) -> Iterator[tuple[dict[str, Any], int]]:
    end = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            yield {"path": None, "error": None} | json.loads(line), end
        except (ValueError, TypeError):
            raise _changed(output) from None


def _changed(output: Path) -> InputError:
    return InputError(f"--continue: {output}: it has been changed; leave out --continue to begin anew")


def _pack(journal: Path, output: Path, columns: Mapping[str, Kind]) -> None:
    """Convert JSON lines to Parquet, a row group after the other."""
    import pyarrow
    from pyarrow import parquet

    types = {"text": pyarrow.string(), "number": pyarrow.float64(), "flag": pyarrow.bool_()}
    types["texts"] = pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        with journal.open("rb") as file, parquet.ParquetWriter(unfinished, schema) as writer:
            while lines := list(islice(file, max(CELLS_HELD // len(columns), 1))):
                writer.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in lines], schema))
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def _unpack(table: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(table)
    except ArrowException:
        raise _changed(table) from None
    with file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
