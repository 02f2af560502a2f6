"""Take images and labels from memory, as in a notebook: NumPy arrays or PIL images."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from typing_extensions import override

from tl_research.data.class_folders import ClassFolders
from tl_research.data.decode import decode_image, exif_turn
from tl_research.data.sources import CACHE, Source
from tl_research.data.table_source import read_table
from tl_research.errors import InputError
from tl_research.recipe import recipe

TABLE = "labels.csv"


def from_arrays(
    images: Iterable[np.ndarray | Image.Image],
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    cache: str | Path | None = None,
) -> list[str]:
    """Keep images and labels in the cache, and return the overrides that name them:
    `compose([*from_arrays(images, labels), "backbone=resnet50"]).run()`.

    Args:
        images: uint8 or uint16 `(h, w)`, uint8 `(h, w, 1)`, `(h, w, 3)` or `(h, w, 4)`, or PIL images, of any sizes; an
            array `(n, h, w, ...)` will do. Floats are in 0 to 1, or else in 0 to 255, for all images alike.
        labels: one a image: names, or numbers, which are then the names.
        groups: one a image: images of one group are not divided between splits.
        splits: one a image: train, val or test.
        cache: the folder; default: `TL_CACHE`, or else `~/.cache/tl_research`.

    The files are NumPy's, so that the digest of each, under which its features are stored, is of dtype, shape and
    bytes; the same images are kept once.

    Raises:
        InputError: an image that is none of the above, or lists of different lengths.
    """
    folder = Path(cache or os.environ.get("TL_CACHE") or CACHE).expanduser() / "arrays"
    arrays = _as_stored([_array(image, number) for number, image in enumerate(images)])
    columns = {"label": labels, "group": groups, "split": splits}
    given = {name: [str(value) for value in values] for name, values in columns.items() if values is not None}
    for name, values in given.items():
        if len(values) != len(arrays):
            raise InputError(f"{name}s: {len(values)} for {len(arrays)} images; give one for each")
    contents = [_content(array) for array in arrays]
    rows = [
        ["path", *given],
        *([f"{n:07d}.npy", *values] for n, values in enumerate(zip(*given.values(), strict=True))),
    ]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    hashes = b"".join(hashlib.sha256(content).digest() for content in contents)
    digest = hashlib.sha256(hashes + text.getvalue().encode()).hexdigest()[:16]
    if not (folder / digest).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=folder))
        for (name, *_), content in zip(rows[1:], contents, strict=True):
            (staging / name).write_bytes(content)
        (staging / TABLE).write_text(text.getvalue())
        try:
            staging.rename(folder / digest)
        except OSError:  # another process was faster
            shutil.rmtree(staging)
    return ["data=arrays", f"data.digest='{digest}'", *([f"data.cache={folder.parent}"] if cache else [])]


def _array(image: Any, number: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        turn = exif_turn(image)
        image = image if turn is None else image.transpose(turn)
        if image.mode.startswith("I") or image.mode in ("L", "RGB", "F"):
            return _checked(np.asarray(image), number)
        content = io.BytesIO()
        image.save(content, "TIFF" if image.mode in ("CMYK", "YCbCr", "LAB") else "PNG")
        return np.asarray(decode_image(content.getvalue()))
    return _checked(np.asarray(image), number)


def _checked(array: np.ndarray, number: int) -> np.ndarray:
    """Return a supported array; whole numbers that fit become uint8 or uint16."""
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 65535:
        small = array.dtype == np.uint8 or (array.dtype != np.uint16 and array.max() <= 255)
        array = array.astype(np.uint8 if small else np.uint16)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype != np.uint16
    if (
        not array.size
        or not (array.ndim == 2 or is_colour)
        or (array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16))
    ):
        hint = "; its channels come first: transpose it" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(
            f"images[{number}]: {array.dtype} {array.shape}; expected uint8 (h, w), (h, w, 3) or (h, w, 4), "
            f"uint16 (h, w), or floats in 0 to 1 or 0 to 255{hint}"
        )
    return array


def _as_stored(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Scale floats to uint8: from 0 to 1 if no image is above, else from 0 to 255."""
    floats = [array for array in arrays if array.dtype.kind == "f"]
    peak = max((float(array.max()) for array in floats), default=0.0)
    low = min((float(array.min()) for array in floats), default=0.0)
    if not (low >= 0 and peak <= 255):
        raise InputError(f"images: floats from {low:g} to {peak:g}; scale them to 0 to 1 or 0 to 255")
    factor = 255 if peak <= 1 else 1
    return [(array * factor + 0.5).astype(np.uint8) if array.dtype.kind == "f" else array for array in arrays]


def _content(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array))
    return content.getvalue()


@recipe
class Arrays(Source):
    """Images and labels that `from_arrays` keeps in `cache`, by their digest."""

    digest: Annotated[str, Field(pattern=r"^\w+$")]
    cache: str = CACHE

    @override
    def tree(self) -> ClassFolders:
        table = Path(self.cache).expanduser() / "arrays" / self.digest / TABLE
        if not table.is_file():
            raise InputError(f"data.digest={self.digest}: {table} is not there; tl_research.from_arrays makes it")
        columns = {"path": "path", "label": "label"}
        return read_table(table, columns=columns)

    @override
    def labelled_tree(self, class_names: Sequence[str]) -> ClassFolders:
        return self.tree()

    @override
    def preflight(self) -> None:
        self.tree()
