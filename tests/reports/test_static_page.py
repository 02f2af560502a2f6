"""Pages without a script."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from tl_research.reports.static_page import html_table, image_cards, paragraph, section, static_page

HOSTILE = '<img src=x onerror="alert(1)">&'


def test_text_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    photo, lost = tmp_path / 'a"b<c>.png', tmp_path / "lost.png"
    Image.new("RGB", (300, 200)).save(photo)
    cards = image_cards([(photo, [HOSTILE]), (lost, ["lost"])])
    page = static_page(HOSTILE, section(HOSTILE, paragraph(HOSTILE), html_table([HOSTILE], [[HOSTILE]]), cards))
    assert HOSTILE not in page
    assert "default-src 'none'" in page
    assert [source[:22] for source in re.findall('<[a-z]+ [^>]*src="([^"]*)"', page)] == ["data:image/jpeg;base64"]
    assert "<img" not in image_cards([(photo, ["text"])], pictures=False)
