"""Test the range of values that becomes 0 to 255 in images with more than 8 bits a channel."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decode import chunk
from tl_research import InputError, compose
from tl_research.data.build_dataset import split_dataset, unsplit_dataset
from tl_research.data.class_folders import read_class_folders
from tl_research.data.decode import UndecodableError, decode_image, decode_stored
from tl_research.data.file_index import FileIndex
from tl_research.data.pixel_range import AS_STORED, DeepValues, PixelRange, choose_range
from tl_research.evaluation.predict import predict_logits

CUT: dict[str, Any] = {"val": 0.2, "test": 0.2, "split_seed": 0, "max_bad": 0.05}


def deep_png(values: np.ndarray) -> bytes:
    """Write 16-bit values `(h, w, channels)` as Pillow cannot: grey, grey + alpha, RGB or RGBA."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_tiff(values: np.ndarray, order: str = "<") -> bytes:
    """Write RGB values as a 16-bit TIFF without compression."""
    height, width, _ = values.shape
    tags = [(256, width), (257, height), (258, 200), (259, 1), (262, 2), (273, 208), (277, 3), (278, height)]
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags]
    entries[2] = struct.pack(f"{order}HHII", 258, 3, 3, 200)
    entries.append(struct.pack(f"{order}HHII", 279, 4, 1, height * width * 6))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries)) + b"".join(entries)
    return (head.ljust(200, b"\0") + struct.pack(f"{order}3H", 16, 16, 16)).ljust(208, b"\0") + values.astype(
        f"{order}u2"
    ).tobytes()


def tiff(*values: float) -> bytes:
    file = io.BytesIO()
    dtype = np.int32 if isinstance(values[0], int) else np.float32
    Image.fromarray(np.array([values], dtype)).save(file, "TIFF")
    return file.getvalue()


def twelve_bit(channels: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 4096, (8, 9, channels)).astype(np.uint16)
    values[0, 0] = 4095
    return values


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        *((deep_png(twelve_bit(channels)), channels) for channels in (1, 2, 3, 4)),
        *((deep_tiff(twelve_bit(3), order), 3) for order in "<>"),
    ],
    ids=["grey", "grey+alpha", "rgb", "rgba", "little-endian tiff", "big-endian tiff"],
)
def test_twelve_bits_become_eight(content: bytes, channels: int) -> None:
    values = twelve_bit(channels)[..., : 3 if channels > 2 else 1]
    found = decode_stored(content).values
    assert found is not None
    assert found.high == 4095
    bits = choose_range("auto", None, [found])
    assert bits == PixelRange(12)
    scaled = np.broadcast_to(values / 4095 * 255 + 0.5, (8, 9, 3)).astype(np.uint8)
    alpha = twelve_bit(channels)[..., -1:] >> 8 if channels in (2, 4) else 255
    expected = scaled * (alpha / 255) + 255 - alpha
    assert np.abs(np.asarray(decode_image(content, None, bits)) - expected).max() <= 1
    assert np.asarray(decode_image(content, None, AS_STORED)).tolist() == np.asarray(decode_image(content)).tolist()


@pytest.mark.parametrize(
    ("peaks", "bits"), [([200], 8), ([200, 256], 10), ([1023], 10), ([4000], 12), ([16383, 3], 14), ([16384], 16)]
)
def test_auto_takes_the_fewest_bits_that_hold_all(peaks: list[float], bits: int) -> None:
    values = [DeepValues(is_float=False, low=0, high=peak) for peak in peaks]
    assert choose_range("auto", None, [None, *values, DeepValues(is_float=True, low=0, high=1e6)]).bits == bits


def test_auto_warns_where_only_other_images_are_deep(caplog: pytest.LogCaptureFixture) -> None:
    deep = DeepValues(is_float=False, low=0, high=4095)
    choose_range("auto", None, [deep, None], [deep, None])
    assert not caplog.messages
    assert choose_range("auto", None, [None], [deep, None]).bits == 16
    assert "give data.bits" in caplog.text


def test_without_deep_images_auto_changes_nothing() -> None:
    assert choose_range("auto", None, [None]) == AS_STORED


@pytest.mark.parametrize("values", [(-1000.0, 3000.0), (0.0, 256.5), (-0.5, 1.0), (-1000, 3000), (-1, 70000)])
def test_values_beyond_the_usual_need_a_window(values: tuple[float, float]) -> None:
    content = tiff(*values)
    with pytest.raises(UndecodableError, match=r"data\.window=\[LOW,HIGH\]"):
        decode_image(content)
    scaled = decode_image(content, None, PixelRange(window=values))
    assert np.asarray(scaled)[0, :, 0].tolist() == [0, 255]


def images_of(folder: Path, content: Any, count: int = 6) -> Path:
    for name, bright in (("dark", 0.3), ("light", 0.9)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(content(bright, number))
    return folder


def xray(bright: float, number: int) -> bytes:
    return deep_png(np.random.default_rng(number).uniform(bright - 0.2, bright, (40, 40, 1)) * 4095)


def test_bits_are_chosen_known_again_and_part_of_the_row(tmp_path: Path) -> None:
    tree, index = read_class_folders(images_of(tmp_path / "xrays", xray)), FileIndex(tmp_path / "index")
    first, again = (split_dataset(tree, **CUT, index=index) for _ in range(2))
    assert first.pixel_range == again.pixel_range == PixelRange(12)
    assert list(first.values) == list(again.values)
    assert first.row_digest(0) != first.digests[0]
    stored = split_dataset(tree, **CUT, bits=16)
    assert [stored.row_digest(i) for i in range(len(stored))] == list(stored.digests)


def test_a_shard_of_deep_images_wants_the_bits_given(tmp_path: Path) -> None:
    tree = read_class_folders(images_of(tmp_path, xray))
    with pytest.raises(InputError, match=r"give data\.bits"):
        unsplit_dataset(tree, (0, 2), max_bad=0.05)
    assert unsplit_dataset(tree, (0, 2), max_bad=0.05, bits=12).pixel_range == PixelRange(12)


def test_floats_without_a_window_are_refused_by_name(tmp_path: Path) -> None:
    tree = read_class_folders(images_of(tmp_path, lambda bright, number: tiff(-1000.0, 3000.0 * bright)))
    with pytest.raises(InputError, match=r"data\.window="):
        split_dataset(tree, **CUT)
    assert len(split_dataset(tree, **CUT, window=(-1000, 3000))) == 12


def test_a_run_states_its_bits_and_predicts_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images_of(tmp_path / "xrays", xray)
    options = ["backbone=tiny", "backbone.weights=null", "data=folder", f"data.root={folder}", "callbacks=none"]
    run = compose([*options, f"features.store={tmp_path / 'store'}"]).run(tmp_path / "run")
    assert "12 with more than 8 bits a channel: integers of 12 bits" in capsys.readouterr().out
    assert run.pixel_range == PixelRange(12)
    answers = predict_logits(run, [folder / "dark" / "0.png", folder / "light" / "0.png"])
    assert [int(np.argmax(answer)) for answer in answers] == [0, 1]


@pytest.mark.parametrize("window", ["[5,5]", "[9,1]"])
def test_a_window_ascends(window: str) -> None:
    with pytest.raises(InputError, match=r"window=.*black and white"):
        compose(["data=folder", "data.root=x", f"data.window={window}"])
