"""Test that any image file becomes upright RGB of the right shape, or has a reason why not."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tl_research.data.decode import (
    Resize,
    UndecodableError,
    decode_image,
    decode_pixels,
    decode_stored,
    fit,
    open_image,
    read_bytes,
    read_pixels,
)

few = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """Draw smooth patches and some noise, which JPEG keeps well, with detail in all three channels."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray(np.clip(np.asarray(patches) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_claiming(width: int, height: int) -> bytes:
    """Write a PNG of a few hundred bytes whose header claims `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_image(path)).astype(int)


# Formats


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 30),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 30),
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 40),
    ],
)
def test_a_colour_image_comes_back_in_every_format(
    tmp_path: Path, kind: str, options: dict[str, object], tolerance: int
) -> None:
    source = photo()
    (tmp_path / "image").write_bytes(encoded(source, kind, **options))
    found = open_image(tmp_path / "image")
    assert found.mode == "RGB"
    assert found.size == source.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(source)).max() <= tolerance


def test_the_name_does_not_decide_how_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "really_a_png.jpg").write_bytes(encoded(photo(), "PNG"))
    assert np.array_equal(pixels(tmp_path / "really_a_png.jpg"), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, kind: str) -> None:
    grey = photo().convert("L")
    (tmp_path / "image").write_bytes(encoded(grey, kind))
    assert np.array_equal(pixels(tmp_path / "image"), np.repeat(np.asarray(grey)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_gives_its_colours(tmp_path: Path, kind: str) -> None:
    indexed = photo().quantize(16)
    (tmp_path / "image").write_bytes(encoded(indexed, kind))
    assert np.array_equal(pixels(tmp_path / "image"), np.asarray(indexed.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_black_and_white(tmp_path: Path, kind: str) -> None:
    bits = Image.fromarray(np.arange(63).reshape(7, 9) % 3 == 0)
    assert bits.mode == "1"
    (tmp_path / "image").write_bytes(encoded(bits, kind))
    assert np.array_equal(pixels(tmp_path / "image")[..., 1], 255 * (np.arange(63).reshape(7, 9) % 3 == 0))


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    colours = {
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "blue": (0, 0, 255),
        "white": (255, 255, 255),
        "black": (0,) * 3,
    }
    for name, colour in colours.items():
        image = Image.new("RGB", (16, 16), colour).convert("CMYK")
        (tmp_path / f"{name}.jpg").write_bytes(encoded(image, "JPEG", quality=95))
        assert np.abs(pixels(tmp_path / f"{name}.jpg") - colour).max() <= 3


def test_sixteen_bit_grey_keeps_its_contrast(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535, 1, 40000]], dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    assert pixels(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255, 0, 156]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 40.0, 80.0], [0, 40, 80]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
    ids=["to_1", "to_255", "within_255", "not_finite", "black"],
)
def test_a_float_tiff_keeps_its_contrast(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    (tmp_path / "float.tif").write_bytes(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))
    assert pixels(tmp_path / "float.tif")[0, :, 2].tolist() == expected


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        (tmp_path / kind).write_bytes(data)
        assert np.abs(pixels(tmp_path / kind) - (255, 0, 0)).max() <= 3


# Transparency


def on_white(value: float, alpha: float) -> int:
    return round((value * alpha + 255 * (255 - alpha)) / 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(200, 100, 50, 255), (200, 100, 50, 128), (200, 100, 50, 0), (0, 0, 0, 64)]):
        image.putpixel((x, 0), pixel)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    (tmp_path / "image").write_bytes(encoded(image, kind, **options))
    expected = [[on_white(v, a) for v in rgb] for *rgb, a in [image.getpixel((x, 0)) for x in range(4)]]
    assert expected[2] == [255, 255, 255]
    assert pixels(tmp_path / "image")[0].tolist() == expected


def test_grey_with_alpha_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (3, 1))
    for x, pixel in enumerate([(10, 255), (10, 51), (10, 0)]):
        image.putpixel((x, 0), pixel)
    (tmp_path / "image.png").write_bytes(encoded(image, "PNG"))
    assert pixels(tmp_path / "image.png")[0, :, 0].tolist() == [10, on_white(10, 51), 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    (tmp_path / "image").write_bytes(encoded(image, kind, transparency=0))
    assert pixels(tmp_path / "image")[0].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_a_palette_with_an_alpha_for_each_entry_is_composited(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    (tmp_path / "image.png").write_bytes(encoded(image, "PNG", transparency=bytes([255, 51])))
    assert pixels(tmp_path / "image.png")[0].tolist() == [[0, 0, 0], [255, 204, 204]]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 7), ("1", 0)])
def test_a_colour_declared_transparent_is_white(tmp_path: Path, mode: str, colour: object) -> None:
    (tmp_path / "image.png").write_bytes(encoded(Image.new(mode, (2, 2), colour), "PNG", transparency=colour))
    assert (pixels(tmp_path / "image.png") == 255).all()


# Orientation


AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),  # camera held on its side: rotate clockwise by 90 degrees
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", AS_STORED)
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = np.asarray(photo(20, 12))
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "image").write_bytes(encoded(stored, kind, exif=exif, **options))
    assert np.array_equal(pixels(tmp_path / "image"), upright)


@pytest.mark.parametrize("orientation", AS_STORED)
def test_every_exif_orientation_of_a_jpeg_comes_out_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(Image.fromarray(np.eye(3, 2, dtype=np.uint8) * 200).resize((32, 48), Image.Resampling.NEAREST))
    upright = np.repeat(upright[..., None], 3, axis=2)
    upright[:8] = (250, 120, 10)
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "image.jpg").write_bytes(encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif))
    assert np.abs(pixels(tmp_path / "image.jpg") - upright).max() <= 4


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    (tmp_path / "image.png").write_bytes(encoded(photo(), "PNG", exif=exif))
    assert np.array_equal(pixels(tmp_path / "image.png"), np.asarray(photo()))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as on the command line: damaged EXIF blocks are ignored
@settings(few, max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
@example(changes=[(11, 0)])
def test_a_damaged_exif_block_takes_nothing_from_the_picture(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "A camera", 72.5
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    data = bytearray(encoded(photo(24, 16), "JPEG", exif=exif))
    start = data.index(b"Exif\0\0") + 6
    length = int.from_bytes(data[start - 8 : start - 6], "big") - 8
    for place, value in changes:
        data[start + place % length] = value
    (tmp_path / "image.jpg").write_bytes(data)
    assert sorted(open_image(tmp_path / "image.jpg").size) == [16, 24]


def test_an_exif_block_of_junk_takes_nothing_from_the_picture(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encoded(photo(), "PNG", exif=b"Exif\0\0" + b"junk" * 20))
    assert np.array_equal(pixels(tmp_path / "image.png"), np.asarray(photo()))


# Resizing


def test_squash_fills_the_square_and_ignores_the_aspect() -> None:
    image = Image.new("RGB", (80, 20), "blue")
    image.paste((255, 0, 0), (0, 0, 40, 20))
    found = np.asarray(fit(image, 16, "squash"))
    assert (found[:, :6] == (255, 0, 0)).all()
    assert (found[:, 10:] == (0, 0, 255)).all()


def test_crop_keeps_the_centre_and_the_aspect() -> None:
    image = Image.new("RGB", (80, 20), "blue")
    image.paste((255, 0, 0), (25, 0, 55, 20))
    assert (np.asarray(fit(image, 20, "crop")) == (255, 0, 0)).all()


@pytest.mark.parametrize("turned", [False, True])
def test_pad_keeps_everything_on_white(turned: bool) -> None:
    image = Image.new("RGB", (20, 80) if turned else (80, 20), "blue")
    found = np.asarray(fit(image, 16, "pad"))
    found = found.swapaxes(0, 1) if turned else found
    assert (found[6:10] == (0, 0, 255)).all()
    assert (found[:6] == 255).all()
    assert (found[10:] == 255).all()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (1, 1), (33, 33)])
def test_any_shape_fits(size: tuple[int, int], resize: str) -> None:
    found = np.asarray(fit(Image.new("RGB", size, "red"), 32, resize))
    assert found.shape == (32, 32, 3)
    assert (found == (255, 0, 0)).all(axis=2).any(), "the picture is gone"


@settings(few, max_examples=40)
@given(width=st.integers(8, 700), height=st.integers(8, 700), size=st.integers(8, 128))
def test_reduced_decoding_keeps_twice_the_networks_size(tmp_path: Path, width: int, height: int, size: int) -> None:
    Image.new("RGB", (width, height)).save(tmp_path / "image.jpg")
    found = open_image(tmp_path / "image.jpg", at_least=2 * size).size
    if min(width, height) >= 2 * size:
        assert min(found) >= 2 * size
    else:
        assert found == (width, height)


def test_large_jpegs_decoded_at_reduced_scale_look_the_same(tmp_path: Path) -> None:
    photo(1600, 1200).save(tmp_path / "image.jpg", quality=92)
    full = open_image(tmp_path / "image.jpg")
    reduced = open_image(tmp_path / "image.jpg", at_least=2 * 128)
    assert full.size == (1600, 1200)
    assert reduced.size == (400, 300)
    difference = np.abs(np.asarray(fit(full, 128)).astype(int) - read_pixels(tmp_path / "image.jpg", 128))
    assert difference.mean() < 1
    assert difference.max() <= 12


def loader(path: Path, size: int) -> np.ndarray:
    """Load pixels by the lines in docs/using-a-model.md."""
    image = Image.open(path)
    image.draft("RGB", (2 * size, 2 * size))
    upright = ImageOps.exif_transpose(image).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(upright)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(640, 480), (300, 500), (64, 64), (30, 45), (1000, 750)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.filterwarnings("error")
def test_readmes_three_line_loader_gives_the_same_pixels(
    tmp_path: Path, kind: str, size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(*size).save(tmp_path / "image", kind, exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "image", 96), loader(tmp_path / "image", 96))


# Undecodable files


def truncated(kind: str, share: float = 0.6) -> bytes:
    data = encoded(photo(), kind)
    return data[: int(share * len(data))]


def corrupt_gif() -> bytes:
    data = bytearray(encoded(photo(), "GIF"))
    data[800:] = np.random.default_rng(0).integers(0, 256, len(data) - 800, dtype=np.uint8).tobytes()
    return bytes(data)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "truncated.jpg": (truncated("JPEG"), "truncated"),
    "cut_at_the_end.jpg": (encoded(photo(), "JPEG")[:-40], "truncated"),
    "header_only.jpg": (truncated("JPEG", 0.1), ""),
    "truncated.png": (truncated("PNG"), "truncated"),
    "truncated.gif": (truncated("GIF"), "truncated"),
    "truncated.bmp": (truncated("BMP"), "truncated"),
    "truncated.webp": (truncated("WEBP"), ""),
    "corrupt.gif": (corrupt_gif(), ""),
    "broken_chunk.png": (encoded(photo(), "PNG").replace(b"IDAT", b"IDAT\x00", 1), "broken"),
    "text.jpg": (b"Thumbnails are in the other folder.\n" * 9, "not an image that can be read (JPEG, PNG,"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"),
    "empty.jpg": (b"", "empty file"),
    "one_byte.png": (b"\x89", "not an image"),
    "bomb.png": (png_claiming(30_000, 30_000), "more than 178 megapixels"),
    "no_pixels.png": (png_claiming(0, 0), ""),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize(
    "read",
    [lambda path: decode_stored(read_bytes(path)), open_image, lambda path: read_pixels(path, 32)],
    ids=["stored", "open", "read"],
)
def test_an_undecodable_file_has_a_reason(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    data, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UndecodableError) as caught:
        read(tmp_path / name)
    assert reason in str(caught.value)
    assert 0 < len(str(caught.value)) <= 120
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value), "whoever reports it names the file already"


def test_a_path_that_is_no_file_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, reason in {
        tmp_path / "missing.jpg": "no such file",
        tmp_path / "folder.jpg": "a folder, not an image",
        tmp_path / "dangling.jpg": "no such file",
        tmp_path / "pipe.jpg": "not a regular file",
        tmp_path / f"{'x' * 300}.jpg": "name too long",
        Path("nul\0byte.jpg"): "no such file",
    }.items():
        with pytest.raises(UndecodableError, match=reason):
            read_pixels(path, 32)


def test_a_permission_error_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jpg").write_bytes(encoded(photo(), "JPEG"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UndecodableError, match="no permission to read it"):
        decode_stored(read_bytes(tmp_path / "mine.jpg"))


def test_an_image_that_does_not_fit_in_memory_is_undecodable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge.jpg").write_bytes(encoded(photo(), "JPEG"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(UndecodableError, match="does not fit in memory"):
        decode_stored(read_bytes(tmp_path / "huge.jpg"))


def is_pixels_or_undecodable(path: Path, data: bytes, resize: str = "squash") -> None:
    path.write_bytes(data)
    try:
        found = read_pixels(path, 16, resize)
    except UndecodableError:
        return
    assert found.dtype == np.uint8
    assert found.shape == (16, 16, 3)


MAGIC = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*"]


@few
@given(magic=st.sampled_from(MAGIC), data=st.binary(max_size=300), resize=st.sampled_from(["squash", "crop", "pad"]))
def test_any_bytes_give_pixels_or_are_undecodable(tmp_path: Path, magic: bytes, data: bytes, resize: str) -> None:
    is_pixels_or_undecodable(tmp_path / "image", magic + data, resize)


VALID = [
    encoded(photo(40, 30), "JPEG"),
    encoded(photo(40, 30), "PNG"),
    encoded(photo(40, 30).quantize(16), "GIF", transparency=0),
    encoded(photo(40, 30), "BMP"),
    encoded(photo(40, 30), "WEBP"),
    encoded(photo(40, 30), "TIFF", compression="tiff_lzw"),
]


@settings(few, max_examples=200)
@given(
    data=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    in_header=st.booleans(),
    cut=st.floats(0.05, 1),
)
def test_damaged_images_give_pixels_or_are_undecodable(
    tmp_path: Path, data: bytes, changes: list[tuple[float, int]], in_header: bool, cut: float
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * (100 if in_header else len(damaged)))] = value
    is_pixels_or_undecodable(tmp_path / "image", bytes(damaged[: int(cut * len(damaged))]))


# Pixels of the current version


def ramps(*channels: int) -> np.ndarray:
    """Draw 24 x 16 pixels without two equal rows or columns, one channel per number: uint8 `(16, 24, n)`."""
    y, x = np.mgrid[:16, :24]
    return np.stack([(x * (7 + n) + y * (13 * n + 5) + x * y) % 256 for n in channels], axis=-1).astype(np.uint8)


def turned(turn: int) -> dict[str, object]:
    exif = Image.Exif()
    exif[0x0112] = turn
    return {"exif": exif}


def paletted() -> Image.Image:
    image = Image.fromarray(ramps(1)[..., 0] % 8, "P")
    image.putpalette(bytes(range(0, 240, 10)))
    return image


RGB, RGBA = Image.fromarray(ramps(1, 2, 3)), Image.fromarray(ramps(1, 2, 3, 4))
DEEP = ramps(1)[..., 0].astype(np.uint16) * 200
FILES: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
    "colour": (RGB, "PNG", {}),
    "bitmap": (RGB, "BMP", {}),
    "lossless WebP": (RGB, "WEBP", {"lossless": True}),
    "grey": (Image.fromarray(ramps(1)[..., 0]), "PNG", {}),
    "black and white": (Image.fromarray(ramps(1)[..., 0] > 100), "PNG", {}),
    "palette": (paletted(), "PNG", {}),
    "transparent palette": (paletted(), "PNG", {"transparency": 3}),
    "alpha": (RGBA, "PNG", {}),
    "16 bits": (Image.fromarray(DEEP), "PNG", {}),
    "float": (Image.fromarray(DEEP.astype(np.float32) / 9000), "TIFF", {}),
    "CMYK": (Image.fromarray(ramps(1, 2, 3, 4), "CMYK"), "TIFF", {}),
    **{f"turned {turn}": (RGB, "PNG", turned(turn)) for turn in range(2, 9)},
}
DIGESTS = {
    "colour": "0036f622c29c41db",
    "bitmap": "0036f622c29c41db",
    "lossless WebP": "0036f622c29c41db",
    "grey": "20e1d8440c33d9a6",
    "black and white": "a91ff04d37830bcd",
    "palette": "9adda534800fbab5",
    "transparent palette": "421115c82b0a5d5f",
    "alpha": "84000dfd90827516",
    "16 bits": "3662e143129342db",
    "float": "19fb1cc059d0b474",
    "CMYK": "fb18c15d948bc0d1",
    "turned 2": "67870bb397767df9",
    "turned 3": "ece64797d901013e",
    "turned 4": "78f1c2ec5f04c4b0",
    "turned 5": "4c146fcdf527e995",
    "turned 6": "05808369b1c5481c",
    "turned 7": "22ae301284c73a12",
    "turned 8": "ef16e54664a109d1",
}
FITTED: dict[Resize, str] = {
    "squash": "b6ce67e7d97aa164",
    "crop": "5c2367e62a510076",
    "pad": "74f57a2c9743d18c",
}
CHANGED = "other pixels than before: change DECODER_VERSION in decode.py (and CODE_VERSION), then this digest"


def short(pixels: np.ndarray) -> str:
    """Hash pixels and their shape."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FILES)
def test_changed_decoded_pixels_need_a_new_version(name: str) -> None:
    image, kind, options = FILES[name]
    assert short(np.asarray(decode_image(encoded(image, kind, **options)))) == DIGESTS[name], CHANGED


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_changed_resized_pixels_need_a_new_version(resize: Resize) -> None:
    assert short(decode_pixels(encoded(RGB, "PNG"), 32, resize)) == FITTED[resize], CHANGED
