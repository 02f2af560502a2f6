"""Test that each of 5,000 damaged files gets a status: no crash, no hang, memory bounded, training's verdict alike."""

from __future__ import annotations

import os
import resource
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_decode import chunk, encoded, photo
from tests.data.test_pixel_range import deep_png, deep_tiff, tiff, twelve_bit
from tl_research.data.decode import UndecodableError, read_pixels
from tl_research.data.inspection import inspect_all, without_unscalable
from tl_research.evaluation.predict import images_in

SMALL = photo(40, 30)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
WHOLE = [
    *(encoded(SMALL, kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "AVIF", "TIFF")),
    encoded(SMALL, "JPEG", progressive=True),
    encoded(SMALL.quantize(16), "GIF", transparency=0),
    encoded(SMALL, "TIFF", compression="tiff_lzw"),
    encoded(SMALL, "TIFF", compression="jpeg"),
    encoded(SMALL, "GIF", save_all=True, append_images=[SMALL.rotate(90)]),
    encoded(SMALL.convert("CMYK"), "JPEG"),
    deep_png(twelve_bit(1)),
    deep_png(twelve_bit(4)),
    deep_tiff(twelve_bit(3)),
    tiff(*np.linspace(0, 1, 50)),
    HEIC + bytes(200),
]
Damage = Callable[[bytearray, np.random.Generator], bytes]


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: rng.integers(0, len(data))])


def spoil_header(data: bytearray, rng: np.random.Generator) -> bytes:
    places = rng.integers(0, min(100, len(data)), rng.integers(1, 6))
    for place in places:
        data[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return bytes(data)


def splice(data: bytearray, rng: np.random.Generator) -> bytes:
    other = WHOLE[rng.integers(len(WHOLE))]
    return bytes(data[: rng.integers(1, len(data))]) + other[rng.integers(len(other)) :]


def repeat(data: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    return bytes(data[: start + 20] + data[start:] * int(rng.integers(1, 20)))


DAMAGES: list[Damage] = [flip, cut, spoil_header, splice, repeat]


def grey_png(side: int, rows: int) -> bytes:
    """Write black pixels of a huge image in a few kilobytes; `rows` are there."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compressobj()
    data = b"".join(pixels.compress(bytes(side + 1)) for _ in range(rows)) + pixels.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_oddities(folder: Path) -> None:
    for name, target in {"loop1.jpg": "loop2.jpg", "loop2.jpg": "loop1.jpg", "self": "self", "up.png": ".."}.items():
        (folder / name).symlink_to(target)
    for name in (
        b"\xff\xfe.jpg",
        b"new\nline.png",
        b"-rf.gif",
        b"\xe2\x80\xae.jpg",
        b"'$(x)'.jpg",
        b"x" * 250 + b".jpg",
    ):
        (folder / os.fsdecode(name)).write_bytes(WHOLE[0])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    for number in range(8):
        (folder / f"bomb{number}.png").write_bytes(grey_png(13_300, 13_300 if number < 4 else 5))
    (folder / "text.png").write_bytes(
        WHOLE[1][:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + WHOLE[1][33:]
    )
    (folder / "claims.png").write_bytes(grey_png(60_000, 5))


@pytest.mark.slow
def test_each_of_5000_damaged_files_gets_a_status(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5000):
        data = DAMAGES[number % len(DAMAGES)](bytearray(WHOLE[number // len(DAMAGES) % len(WHOLE)]), rng)
        suffix = (".jpg", ".png", ".tif", ".nef", "")[number % 5]
        (tmp_path / f"{number:04d}{suffix}").write_bytes(data)
    write_oddities(tmp_path)
    paths = sorted(tmp_path.iterdir())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspect_all(paths)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20, "KiB: one huge image, not several"
    assert [inspection.path for inspection in found] == paths
    for inspection in map(without_unscalable, found):
        assert inspection.size or inspection.reason
        assert len(inspection.reason or "") <= 150
        assert "\n" not in (inspection.reason or "")
        if not inspection.path.name.startswith("bomb"):
            assert readable(inspection.path) == (inspection.reason is None), inspection
    assert 500 < sum(inspection.reason is None for inspection in found) < 4500
    assert set(images_in([tmp_path])) <= set(paths)


def readable(path: Path) -> bool:
    try:
        return read_pixels(path, 32).shape == (32, 32, 3)
    except UndecodableError:
        return False


@pytest.mark.slow
def test_files_that_vanish_or_change_while_they_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:03d}.jpg" for number in range(600)]
    content = encoded(photo(400, 300), "JPEG")
    for path in paths:
        path.write_bytes(content)

    def disturb() -> None:
        for number, path in enumerate(reversed(paths)):
            if number % 3 == 0:
                path.unlink()
            elif number % 3 == 1:
                path.write_bytes(content[: len(content) // 2])
            else:
                path.unlink()
                path.mkdir()

    thread = threading.Thread(target=disturb)
    thread.start()
    found = inspect_all(paths)
    thread.join()
    assert all((inspection.size is None) == bool(inspection.reason) for inspection in found)
    assert images_in([tmp_path]) == sorted(path for path in paths if path.is_file())
