"""Fetch a Kaggle data set once, by download or from a zip fetched by hand, and find its class folders."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_research.data.class_folders import SPLIT_NAMES
from tl_research.data.inspection import IMAGE_SUFFIXES, is_image_name, visible
from tl_research.data.kaggle.archive import BadArchiveError, claim, fingerprint, unpack, writing
from tl_research.data.kaggle.kaggle_client import download
from tl_research.errors import InputError

log = logging.getLogger(__name__)

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
    with _explained(dataset), writing(folder), claim(folder.with_name(f".{folder.name}.lock")):
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


def find_root(folder: Path) -> Path:
    """Find the shallowest folder with `train/CLASS/` images, or with two or more class folders of images.

    Archives may hold the same tree twice; a deeper one is ignored and logged. Raises InputError where there is none,
    or several side by side.
    """
    roots: list[tuple[int, Path]] = []
    waiting, seen = [(0, folder)], []
    while waiting:
        depth, parent = waiting.pop(0)
        inner = [path for path in visible(parent.iterdir()) if path.is_dir()]
        seen += inner
        parts = _data_folders(inner)
        if parts:
            roots.append((depth, parent))
        waiting += [(depth + 1, path) for path in inner if path not in parts and path.name.lower() not in SPLIT_NAMES]
    if not roots:
        names = ", ".join(f"{path.relative_to(folder)}/" for path in seen[:8]) or "no folders"
        raise InputError(
            f"{folder}: holds no train/CLASS/*.jpg and no two folders CLASS/*.jpg side by side; found {names}. "
            "Put the images in such folders by hand and use data=folder data.root=FOLDER"
        )
    (depth, root), *others = roots
    rivals = [path for level, path in others if level == depth]
    if rivals:
        names = " or ".join(f"data.root={path}" for path in (root, *rivals))
        raise InputError(f"{folder}: holds more than one data set; choose with data=folder {names}")
    for _, path in others:
        log.info("%s: another copy of the data set is ignored; %s is used", path, root)
    return root


def _data_folders(inner: list[Path]) -> list[Path]:
    """Choose the folders that make their parent a data set: its splits where it has `train/`, else its classes."""
    splits = [path for path in inner if path.name.lower() in SPLIT_NAMES]
    for path in splits:
        if SPLIT_NAMES[path.name.lower()] == "train" and any(_has_images(p) for p in path.iterdir() if p.is_dir()):
            return splits
    classes = [path for path in inner if path not in splits and _has_images(path)]
    return classes if len(classes) > 1 else []


def _has_images(folder: Path) -> bool:
    paths = visible(folder.iterdir())
    named = any(path.suffix.lower() in IMAGE_SUFFIXES for path in paths)
    # `is_image_name` opens the file: a few will do.
    return named or any(path.is_file() and is_image_name(path) for path in paths[:20])


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
