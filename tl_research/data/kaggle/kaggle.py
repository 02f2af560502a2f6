"""Fetch a Kaggle data set once, by download or from a zip fetched by hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_research.data.kaggle.archive import BadArchiveError, claim, explain_write_errors, fingerprint, unpack
from tl_research.data.kaggle.kaggle_client import download
from tl_research.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9_-]*")


def fetch(dataset: str, cache: Path, archive: Path | None = None) -> Path:
    """Return the folder with the unpacked data set `owner/name`; a second call finds it there, without network.

    `archive` is a zip fetched by hand: the folder is then named after it and its content. Otherwise the zip comes from
    Kaggle, an interrupted download is continued, and of several processes one downloads. Raises InputError with what
    is missing, where it would come from, how to fetch it by hand, and what works without it.
    """
    if archive:
        return unpack(archive, cache / "kaggle" / f"{archive.stem}-{fingerprint(archive)[:12]}")
    folder = _folder(dataset, cache)
    if _is_filled(folder):
        return folder
    target = folder.with_name(f".{folder.name}.zip")
    with _explained(dataset), explain_write_errors(folder), claim(folder.with_name(f".{folder.name}.lock")):
        if not _is_filled(folder) and not target.is_file():
            download(dataset, target)
        try:
            unpack(target, folder)
        except BadArchiveError:
            target.unlink(missing_ok=True)  # or every later run would trip over it
            raise
        for path in folder.parent.glob(f"{target.name}*"):  # version 0.1 left parts of a download there, too
            path.unlink()
    return folder


def available(dataset: str, cache: Path, archive: Path | None = None) -> str | None:
    """Return one line that says what `fetch` would miss, None when it can be tried. Uses no network, opens no image."""
    try:
        if archive:
            fingerprint(archive)
        else:
            _folder(dataset, cache)
    except (InputError, OSError) as error:
        if archive:
            return f"data.archive={error}. The zip is at {_page(dataset)}"
        return f"data.dataset={dataset}: {error}. {_otherwise(dataset)}"
    return None


def _folder(dataset: str, cache: Path) -> Path:
    if not NAME.fullmatch(dataset):
        inside = NAME.search(dataset.partition("/datasets/")[2])
        raise InputError(f"not of the form OWNER/NAME{f'; did you mean {inside[0]}?' if inside else ''}")
    return cache / "kaggle" / dataset


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _page(dataset: str) -> str:
    return "https://www.kaggle.com/datasets" + (f"/{dataset}" if NAME.fullmatch(dataset) else "")


def _otherwise(dataset: str) -> str:
    hot_dog = dataset == "dansbecker/hot-dog-not-hot-dog"
    data = "data=hot_dog" if hot_dog else f"data=kaggle data.dataset={shlex.quote(dataset)}"
    return (
        f"By hand: download the zip from {_page(dataset)}, then python train.py {data} data.archive=/path/archive.zip. "
        "Without Kaggle: python train.py data=hot_dog_demo"
    )


@contextmanager
def _explained(dataset: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"data.dataset={dataset}: {error}. {_otherwise(dataset)}") from None
