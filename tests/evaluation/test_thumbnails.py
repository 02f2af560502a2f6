"""Privacy: thumbnails are pixels alone, and `report.thumbnails=false` keeps every picture out."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_noise
from tests.experiment.test_experiment import run
from tl_research.commands.explain import explain_command
from tl_research.evaluation.evaluate import thumbnail
from tl_research.reports.compare import compare_runs, write_comparison
from tl_research.reports.html_report import write_report


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_thumbnails_say_nothing_but_pixels(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    exif.get_ifd(0x8825)[1] = "N"
    image = Image.fromarray(np.zeros((200, 300, 3), np.uint8))
    image.save(tmp_path / "a", kind, exif=exif, icc_profile=b"SECRET", comment="SECRET", xmp=b"SECRET")
    assert b"SECRET" in (tmp_path / "a").read_bytes()
    content = base64.b64decode(thumbnail(tmp_path / "a"))
    assert b"SECRET" not in content
    shown = Image.open(io.BytesIO(content))
    assert not shown.getexif()
    assert not {"comment", "icc_profile", "xmp", "exif"} & shown.info.keys()


@pytest.mark.slow
def test_no_picture_is_shown_without_thumbnails(tmp_path: Path) -> None:
    photos = draw_noise(tmp_path / "photos", ("train", "test"), 8)
    options = ["report.thumbnails=false", "optimizer=adam", "transfer.head.epochs=1", "data/augment=light"]
    first, second = (run(tmp_path / name, photos, *options, f"seed={name}") for name in "12")
    wrong = json.loads((first.directory / "mistakes.json").read_text())
    assert wrong
    assert all(set(one) == {"path", "label", "prediction", "probability"} for one in wrong)
    events = b"".join(path.read_bytes() for path in (first.directory / "tensorboard").iterdir())
    assert [tag in events for tag in (b"train/batch", b"test/predictions", b"test/reliability")] == [False, False, True]
    report = write_report(first.directory, maps=True)
    explain_command(first.directory)
    compared = write_comparison(compare_runs([first.directory, second.directory]), tmp_path / "compared")
    for page in (report, first.directory / "explain" / "explain.html", compared, first.directory / "model_card.md"):
        assert "/9j/" not in page.read_text(), "a JPEG in base64"
        assert "<img" not in page.read_text()
    assert not list(first.directory.rglob("*.png"))
