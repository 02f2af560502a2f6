"""Nominate images of equal pixels by what the one reading of each file leaves behind; few need a second look."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tl_research.data.decode import Decoded

REDUCED = 8  # the scale of a JPEG that is only checked; other images are averaged to the same
CELLS = 4  # of a thumbnail, a side
LEAST = 64  # pixels of a side; below, a JPEG's invented border weighs too much for a thumbnail
DEEP = "deep"  # the way of images with more than 8 bits a channel
ASIDE = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE)
NEAR = 24
"""Grey levels by which thumbnails of one image may differ. Photographs differ by up to 12; drawings, whose white and
black a JPEG oversteps, by up to 19."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one reading of a file tells of its pixels, as plain values: `format` by Pillow's name, the upright `(width,
    height)`, how it was decoded, a digest and a grey thumbnail of that.

    Images of equal pixels have equal digests if they were decoded in the same way, else near thumbnails. `averages` and
    `pixels` are digests of the image decoded in full: of its averages, which most formats have at once, and of all,
    which is computed where another file may be equal. Empty: not known.
    """

    format: str
    size: tuple[int, int]
    way: str
    digest: str
    thumbnail: str = ""
    averages: str = ""
    pixels: str = ""

    @classmethod
    def of(cls, stored: Sequence[Any]) -> Self:
        """Read what JSON made of `dataclasses.astuple`."""
        format_, size, *rest = stored
        return cls(format_, (size[0], size[1]), *rest)


def fingerprint_of(decoded: Decoded) -> Fingerprint:
    """Describe an image that `decode_stored` decoded, not in full."""
    image, turn, way, box = decoded.image, decoded.turn, "", decoded.box
    if decoded.deep is not None:
        few = np.ascontiguousarray(decoded.deep[::REDUCED, ::REDUCED], np.float64)
        return Fingerprint(decoded.format, decoded.size, f"{DEEP}, turned {turn}", _hash(few.tobytes()))
    size = decoded.size[::-1] if turn in ASIDE else decoded.size
    if box:
        way = f"reduced, turned {turn}"
    else:
        image, turn = _averages(image), None
        box = (0, 0, *((side / REDUCED for side in size) if min(size) >= REDUCED else size))
    thumbnail = _thumbnail(image, turn, box) if min(size) >= LEAST else ""
    digest = _hash(image.tobytes())
    return Fingerprint(decoded.format, size, way, digest, thumbnail, averages="" if way else digest)


def with_averages(known: Fingerprint, decoded: Decoded) -> Fingerprint:
    """Complete a fingerprint by the averages of an image that `decode_stored` decoded in full."""
    return replace(known, averages=_hash(_averages(decoded.image).tobytes()))


def with_pixels(known: Fingerprint, decoded: Decoded) -> Fingerprint:
    """Complete a fingerprint by all pixels of an image that `decode_stored` decoded in full."""
    if decoded.deep is None:
        return replace(known, pixels=_hash(repr(decoded.image.size).encode(), decoded.image.tobytes()))
    rows = (np.ascontiguousarray(row, np.float64).tobytes() for row in decoded.deep)
    return replace(known, pixels=_hash(repr((decoded.deep.shape, decoded.turn)).encode(), *rows))


def average_candidates(prints: Sequence[Fingerprint]) -> list[int]:
    """List the images without `averages` that may equal one that was decoded in another way, by index."""
    by_size: dict[tuple[int, int], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, found in enumerate(prints):
        if not found.way.startswith(DEEP):
            by_size[found.size][found.way].append(i)
    chosen = [i for ways in by_size.values() if len(ways) > 1 for i in _near_other_ways(ways, prints)]
    return sorted(chosen)


def pixel_candidates(files: Sequence[bytes], prints: Sequence[Fingerprint]) -> list[int]:
    """List the images without `pixels` that may equal another file, by index; `files` are digests of the content."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, found in enumerate(prints):
        for key in {(found.size, found.way, found.digest), (found.size, "averages", found.averages)}:
            alike[key if key[-1] else (*key, i)].append(i)
    chosen = {i for members in alike.values() if len({files[i] for i in members}) > 1 for i in members}
    return sorted(i for i in chosen if not prints[i].pixels)


def _near_other_ways(ways: dict[str, list[int]], prints: Sequence[Fingerprint]) -> Iterator[int]:
    """Yield images of one size, without averages, whose thumbnail is near one that was decoded in another way."""
    from scipy.spatial import cKDTree

    rows = {way: np.array([[*bytes.fromhex(prints[i].thumbnail)] for i in each], float) for way, each in ways.items()}
    for way, members in ways.items():
        asked = [n for n, i in enumerate(members) if not prints[i].averages]
        near = np.ones(len(asked), bool)  # where all are too small for a thumbnail
        if asked and rows[way].size:
            others = np.unique(np.concatenate([each for other, each in rows.items() if other != way]), axis=0)
            near = (
                cKDTree(others).query(rows[way][asked], p=np.inf, distance_upper_bound=NEAR + 1, workers=-1)[0] <= NEAR
            )
        yield from (members[n] for n, is_near in zip(asked, near.tolist(), strict=True) if is_near)


def _averages(image: Image.Image) -> Image.Image:
    return image.reduce(REDUCED if min(image.size) >= REDUCED else 1)


def _thumbnail(image: Image.Image, turn: Image.Transpose | None, box: tuple[float, float, float, float]) -> str:
    """Average the part of an image that lies in `box` before it was turned, and turn that."""
    back = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    image = image.convert("L")
    image = image if turn is None else image.transpose(back.get(turn, turn))
    image = image.resize((CELLS, CELLS), Image.Resampling.BOX, box=box)
    return (image if turn is None else image.transpose(turn)).tobytes().hex()


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
