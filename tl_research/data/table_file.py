"""Read a table as text: CSV with any usual separator and encoding, or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tl_research.data.formats import IMAGE_SUFFIXES
from tl_research.errors import InputError

Cells = tuple[list[str], list[Sequence[str]]]
"""A header and rows."""


def read_cells(table: Path, key: str) -> Cells:
    """Read a table's header and rows; columns of a CSV without a header are called `column 1` and so on. Raises
    `InputError`, which names `key`, for what is no table."""
    return _parquet(table, key) if _is_parquet(table, key) else _csv(table, key)


def _is_parquet(table: Path, key: str) -> bool:
    try:
        with table.open("rb") as file:
            return file.read(4) == b"PAR1"
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={table}: cannot be read ({getattr(error, 'strerror', error)})") from None


def _parquet(table: Path, key: str) -> Cells:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{key}={table}: Parquet needs pip install 'tl_research[parquet]'; or make it a CSV") from None
    try:
        content = parquet.read_table(table)
    except (ArrowException, OSError) as error:
        raise InputError(f"{key}={table}: cannot be read ({str(error).splitlines()[0]})") from None
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in content.columns]
    return list(content.column_names), list(zip(*columns, strict=True))


def _csv(table: Path, key: str) -> Cells:
    content = table.read_bytes()
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{key}={table}: not a table; save it as CSV or Parquet")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise InputError(f"{key}={table}: not a table ({error}); save it as CSV or Parquet") from None
    if not rows:
        raise InputError(f"{key}={table}: it is empty")
    if any(names_image(cell) for cell in rows[0]):  # there is no header
        return [f"column {number}" for number in range(1, len(rows[0]) + 1)], list(rows)
    return rows[0], list(rows[1:])


def names_image(cell: str) -> bool:
    """Tell whether a cell is the name of an image file."""
    return PurePosixPath(cell.strip().lower()).suffix in IMAGE_SUFFIXES
