"""Read what a person has looked at and found to be right: pairs that are no duplicates, labels that are right."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tl_research.data.table_file import read_cells
from tl_research.errors import InputError

log = logging.getLogger(__name__)

HEADER = ("finding", "path", "other")
NO_DUPLICATE, LABEL_IS_RIGHT = "no duplicate", "label is right"


@dataclass(frozen=True)
class IgnoreList:
    """Paths below the data's root: pairs that are no duplicates, and images whose label is right."""

    pairs: frozenset[frozenset[str]] = frozenset()
    labels: frozenset[str] = frozenset()


def read_ignore_list(table: Path, known: Collection[str]) -> IgnoreList:
    """Read a table whose rows are `no duplicate,PATH,OTHER` or `label is right,PATH`; lines that name files which are
    not `known` are told in one warning.

    Raises:
        InputError: it cannot be read, or a row says something else.
    """
    key, (header, rows) = f"data.ignore={table}", read_cells(table, "data.ignore")
    if [name.strip().lower() for name in header[:2]] not in (["finding", "path"], ["column 1", "column 2"]):
        raise InputError(f"{key}: its columns are {', '.join(header)}; write {', '.join(HEADER)}")
    pairs, labels, unknown = set(), set(), []
    for number, row in enumerate(rows, 1):
        finding, path, other = ([cell.strip() for cell in row] + ["", ""])[:3]
        if finding == NO_DUPLICATE and path and other:
            pairs.add(frozenset((path, other)))
        elif finding == LABEL_IS_RIGHT and path:
            labels.add(path)
        else:
            right = f"'{NO_DUPLICATE},PATH,OTHER' or '{LABEL_IS_RIGHT},PATH'"
            raise InputError(f"{key}: row {number} is '{','.join(row)}'; write {right}")
        unknown += [name for name in (path, other) if name and name not in known]
    if unknown:
        log.warning("%s: %d of its files are not in the data, such as %s", key, len(unknown), unknown[0])
    return IgnoreList(frozenset(pairs), frozenset(labels))
