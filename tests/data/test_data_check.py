"""Test `data_check`: every planted fault is named and no healthy image, by what files and pixels say alone."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_research import compose
from tl_research.data import file_index, inspection
from tl_research.data.build_dataset import split_dataset
from tl_research.data.class_folders import read_class_folders
from tl_research.data.datamodule import DataModule
from tl_research.data.file_index import FileIndex
from tl_research.data.summary import describe_data
from tl_research.errors import InputError

ORIENTATION = 0x0112
CUT: dict[str, Any] = {"val": 0.2, "test": 0.2, "split_seed": 0, "max_bad": 0.3}


def picture(seed: int) -> Image.Image:
    """Draw coarse shades in fine noise, as photographs are."""
    rng = np.random.default_rng(seed)
    shades = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(
        (121, 99), Image.Resampling.BICUBIC
    )
    return Image.fromarray(np.clip(np.asarray(shades) + rng.normal(0, 9, (99, 121, 3)), 0, 255).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def with_comment(jpeg: bytes) -> bytes:
    """Add a comment to a JPEG: another file of the same pixels."""
    return jpeg[:2] + b"\xff\xfe\x00\x09comment" + jpeg[2:]


def turned(image: Image.Image, path: Path) -> None:
    """Save an image lying on its side, with the EXIF that makes it upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    saved(image.transpose(Image.Transpose.ROTATE_90), path, exif=exif)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 32 healthy images in four formats, and plant faults among them; the name of each says which."""
    root = tmp_path_factory.mktemp("planted")
    folders = [root / split / name for split in ("train", "test") for name in ("a", "b")]
    for number in range(32):
        suffix = ("jpg", "png", "bmp", "webp")[number // 4 % 4]
        saved(picture(number), folders[number % 4] / f"{number}.{suffix}")
    train_a, train_b, test_a, _ = folders
    (train_a / "file.jpg").write_bytes((train_a / "0.jpg").read_bytes())
    (train_b / "conflict.png").write_bytes((train_a / "4.png").read_bytes())
    (test_a / "leak.bmp").write_bytes((train_a / "8.bmp").read_bytes())
    saved(Image.open(train_b / "1.jpg"), train_b / "lossless.bmp")
    saved(Image.open(train_b / "5.png"), test_a / "webp.webp", lossless=True)
    (train_a / "comment.jpg").write_bytes(with_comment((train_a / "16.jpg").read_bytes()))
    turned(Image.open(train_a / "20.png"), train_a / "turned.png")
    turned(Image.open(train_b / "17.jpg"), train_b / "side.png")
    saved(picture(50), train_a / "wrong.jpg", format="PNG")
    whole = io.BytesIO()
    picture(51).save(whole, "JPEG")
    (train_a / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (train_b / "text.png").write_text("no image")
    (train_b / "zero.jpg").write_bytes(b"")
    return root


def loaded(root: Path, index: FileIndex | None = None, **options: Any) -> DataModule:
    return split_dataset(read_class_folders(root), index=index, **CUT | options)


EQUAL = {
    ("0.jpg", "file.jpg"): ("file", False, False),
    ("4.png", "conflict.png"): ("file", True, False),
    ("8.bmp", "leak.bmp"): ("file", False, True),
    ("1.jpg", "lossless.bmp"): ("pixels", False, False),
    ("5.png", "webp.webp"): ("pixels", True, True),
    ("16.jpg", "comment.jpg"): ("pixels", False, False),
    ("20.png", "turned.png"): ("pixels", False, False),
    ("17.jpg", "side.png"): ("pixels", False, False),
}


def test_every_planted_fault_is_named_and_no_healthy_image(planted: Path) -> None:
    data = loaded(planted, allow_leaks=True)
    found = {
        tuple(data.found.paths[i].name for i in each.members): (each.kind, each.is_conflict, each.is_leak)
        for each in data.found.equal
    }
    assert found == EQUAL
    assert {path.name: name for path, name in data.found.formats.items()} == {"wrong.jpg": "PNG"}
    facts = describe_data(data)
    assert [facts[key] for key in ("num_images", "num_duplicates", "num_conflicts", "num_leaks")] == [41, 8, 2, 2]
    reasons = {Path(bad["path"]).name: bad["reason"].split(" that")[0] for bad in facts["set_aside"]}
    assert reasons == {"text.png": "not an image", "truncated.jpg": "truncated", "zero.jpg": "empty file"}
    lines = " ".join([*data.found.notes(), *data.found.warnings()])
    assert all(word in lines for word in ("5 set(s) of equal images", "wrong.jpg is PNG", "2 set(s) of equal images"))


def test_equal_images_in_both_splits_are_refused_by_name(planted: Path) -> None:
    with pytest.raises(
        InputError, match=r"2 set\(s\) of equal images .*train/a/8\.bmp = test/a/leak\.bmp.*allow_leaks"
    ):
        loaded(planted)


def test_groups_that_the_splits_divide_are_warned_of(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("path,group\ntrain/a/0.jpg,one\ntest/a/2.jpg,one\n")
    loaded(planted, allow_leaks=True, group_by=str(table))
    assert "1 group(s) lie both in train/ and in test/, such as 'one'" in caplog.text


def test_only_equal_images_are_decoded_twice_and_once_for_all(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**9))
    read: list[str] = []
    read_bytes = inspection.read_bytes
    monkeypatch.setattr(inspection, "read_bytes", lambda path: [read.append(path.name), read_bytes(path)][1])
    first = loaded(planted, FileIndex(tmp_path), allow_leaks=True)
    assert {name for name in read if read.count(name) > 1} == {
        name for pair, (kind, *_) in EQUAL.items() if kind == "pixels" for name in pair
    }
    read.clear()
    assert loaded(planted, FileIndex(tmp_path), allow_leaks=True).found == first.found
    assert not read
    for file in tmp_path.iterdir():  # as an older version left it
        facts = json.loads(file.read_text().partition("\n")[2])
        content = json.dumps({key: value for key, value in facts.items() if key != "prints"})
        file.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
    assert loaded(planted, FileIndex(tmp_path), allow_leaks=True).found == first.found
    assert set(read) == {path.name for path in first.found.paths}


@pytest.mark.parametrize("options", [{}, {"folds": 3, "fold": 1}, {"test": 0}])
def test_equal_images_are_cut_into_one_split(tmp_path: Path, options: dict[str, Any]) -> None:
    for number in range(24):
        path = saved(picture(number), tmp_path / ("a", "b")[number % 2] / f"{number}.png")
        if number % 3 == 0:
            saved(picture(number), path.with_name(f"{number}-again.bmp"))
    data = loaded(tmp_path, **options)
    splits: dict[str, set[str]] = {}
    for path, split in zip(data.paths, data.split_of, strict=True):
        splits.setdefault(path.stem.removesuffix("-again"), set()).add(split)
    assert len(data) == 32
    assert all(len(each) == 1 for each in splits.values())


def test_folds_keep_equal_images_together(tmp_path: Path) -> None:
    """Heads on noise, each image twice, know nothing of images that they did not see."""
    for number in range(40):
        folder = tmp_path / "all" / ("a", "b")[number // 2 % 2]
        path = saved(picture(number), folder / f"{number}.png")
        saved(picture(number), path.with_name(f"{number}-again.bmp"))
    job = ["backbone=tiny", "backbone.weights=null", "data=folder", f"data.root={tmp_path / 'all'}", "verbose=false"]
    run = compose([*job, "callbacks=none"]).run(tmp_path / "run")
    assert run.metrics["cv_accuracy"] < 0.8
    data = loaded(tmp_path / "all")
    together = data.kept_together(data.indices("train", "val"))
    assert together is not None
    assert set(np.unique(together, return_counts=True)[1]) == {2}
    assert data.kept_together(np.flatnonzero([path.suffix == ".png" for path in data.paths])) is None
