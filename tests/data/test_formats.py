"""Test formats of phones and cameras, and what lies beside images without being one."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decode import chunk
from tests.data.test_decode import encoded as encode
from tests.data.test_pixel_range import CUT
from tl_research import InputError
from tl_research.data import formats
from tl_research.data.build_dataset import split_dataset
from tl_research.data.class_folders import read_class_folders
from tl_research.data.decode import UnreadFormatError, decode_image, read_pixels
from tl_research.data.inspection import inspect, is_image_name
from tl_research.data.splits import first_of_stem
from tl_research.evaluation.predict import images_in

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def encoded(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    return encode(image, kind, **options)


def test_avif_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("image.avif", "image", "image.heic"):
        (tmp_path / name).write_bytes(encoded("AVIF"))
        assert is_image_name(tmp_path / name)
        assert read_pixels(tmp_path / name, 8).shape == (8, 8, 3)


def test_heic_is_read_where_its_extra_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "image.jpg").write_bytes(encoded("HEIF"))
    found = inspect(tmp_path / "image.jpg")
    assert (found.size, found.reason) == ((30, 20), None)


@pytest.fixture
def no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "heic_opener", lambda: False)


def test_avif_is_named_where_pillow_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.features, "check", lambda name: False)
    (tmp_path / "image.jpg").write_bytes(encoded("AVIF"))
    assert "pip install --upgrade pillow" in str(inspect(tmp_path / "image.jpg").reason)


@pytest.mark.usefixtures("no_heic")
@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg", "a"])
def test_heic_is_named_with_its_extra(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HEIC)
    assert images_in([tmp_path]) == [tmp_path / name]
    assert "pip install 'tl_research[heic]'" in str(inspect(tmp_path / name).reason)


def classes(folder: Path, count: int = 6) -> Path:
    for number in range(2 * count):  # no two are equal
        path = folder / ("one", "two")[number // count] / f"IMG_{number % count}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = PICTURE.point(lambda value, number=number: (value + number) % 256)
        path.write_bytes(encoded("JPEG", image))
    return folder


def tiff_of_camera(suffix: str) -> bytes:
    tags = {} if suffix == ".nef" else {50706: b"\1\4\0\0"}
    return encoded("TIFF", tiffinfo=tags)


@pytest.mark.usefixtures("no_heic")
def test_raw_and_heic_are_passed_over_beside_photographs(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos")
    for number in range(6):
        (folder / "one" / f"IMG_{number}.nef").write_bytes(tiff_of_camera(".nef"))
        (folder / "two" / f"IMG_{number}.HEIC").write_bytes(HEIC)
    data = split_dataset(read_class_folders(folder), **CUT)
    assert len(data) == 12
    assert sorted({str(bad.reason)[:4] for bad in data.quarantined}) == ["HEIC", "came"]
    assert len(data.quarantined) == 12


@pytest.mark.usefixtures("no_heic")
def test_a_folder_of_phone_photographs_names_the_extra(tmp_path: Path) -> None:
    for path in classes(tmp_path).rglob("*.jpg"):
        path.with_suffix(".heic").write_bytes(HEIC)
        path.unlink()
    with pytest.raises(InputError, match=r"none of 12 images can be read.*tl_research\[heic\]"):
        split_dataset(read_class_folders(tmp_path), **CUT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"a{suffix}", encoded("TIFF")) for suffix in (".NEF", ".arw", ".dng", ".cr2", ".pef")),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201"),
        ("a.orf", b"IIRO\x08\0\0\0"),
        ("renamed.tif", tiff_of_camera(".dng")),
        ("renamed.jpg", b"IIU\0\x18\0\0\0"),
    ],
)
def test_camera_raw_is_not_read_as_its_thumbnail(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_image_name(tmp_path / name)
    found = inspect(tmp_path / name)
    assert "camera RAW" in str(found.reason)
    assert found.is_unread
    with pytest.raises(UnreadFormatError):
        read_pixels(tmp_path / name, 8)


@pytest.mark.parametrize(
    "name", ["x.jpg_original", "x.JPG~", "x.jpg.bak", "x.bak", "x.jpg.orig", "x.png.part", "#x.jpg#", ".x.jpg.swp"]
)
def test_a_backup_is_no_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded("JPEG"))
    (tmp_path / "without_suffix").write_bytes(encoded("JPEG"))
    assert images_in([tmp_path]) == [tmp_path / "without_suffix"]


def png_with(*chunks: bytes) -> bytes:
    content = encoded("PNG")
    return content[:33] + b"".join(chunks) + content[33:]


MEGABYTES = zlib.compress(bytes(3 * 2**20))


@pytest.mark.parametrize(
    "content",
    [
        png_with(chunk(b"iCCP", b"profile\0\0" + MEGABYTES)),
        png_with(chunk(b"zTXt", b"Comment\0\0" + MEGABYTES)),
        png_with(chunk(b"iTXt", b"Comment\0\1\0\0\0" + MEGABYTES)),
        png_with(*[chunk(b"tEXt", b"Comment\0" + b"x" * 2**20)] * 65),
        encoded("PNG")[:-12] + chunk(b"zTXt", b"Comment\0\0" + MEGABYTES) + encoded("PNG")[-12:],
    ],
    ids=["profile", "compressed text", "international text", "plain text", "at the end"],
)
def test_text_and_profiles_do_not_make_a_png_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    assert is_image_name(tmp_path / "image")
    assert np.array_equal(np.asarray(decode_image(content)), np.asarray(PICTURE))


def test_numbered_files_without_a_suffix_are_no_pairs(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("scan.001", "scan.002", "scan.jpg", "scan.png", "scan.2.png")]
    assert first_of_stem(paths, np.zeros(5)).tolist() == [0, 1, 2, 2, 4]


@pytest.mark.parametrize("options", [{}, {"folds": 3, "fold": 1}])
def test_files_of_one_stem_stay_in_one_split(tmp_path: Path, options: dict[str, int]) -> None:
    folder = classes(tmp_path / "photos", count=10)
    alone = split_dataset(read_class_folders(folder), **CUT, **options)
    for number, path in enumerate(sorted(folder.rglob("*[02468].jpg")), 100):
        image = PICTURE.point(lambda value, number=number: (value + number) % 256)
        path.with_suffix(".png").write_bytes(encoded("PNG", image))
    both = split_dataset(read_class_folders(folder), **CUT, **options)
    split = dict(zip(both.paths, both.split_of, strict=True))
    assert {path: split[path] for path in alone.paths} == dict(zip(alone.paths, alone.split_of, strict=True))
    assert all(split[path] == split[path.with_suffix(".jpg")] for path in both.paths)
