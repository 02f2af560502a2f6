"""Test that equal images are found, and nothing else."""

from __future__ import annotations

from tl_research.data.quality import EqualImages, exact_duplicates, join_equal


def test_items_are_joined_through_others_and_by_no_empty_value() -> None:
    assert join_equal(["a", "b", "b", "", None, "c"], ["x", "x", "y", "", None, "y"]).tolist() == [0, 0, 0, 3, 4, 0]


def test_equal_files_and_pixels_are_told_apart() -> None:
    files, pixels = [b"f", b"f", b"g", b"h", b"i", b"j"], [b"p", b"p", b"", b"q", b"q", b""]
    assert exact_duplicates(files, pixels, [0, 0, 0, 0, 1, 1], ["train", "test", *["train"] * 4]) == [
        EqualImages("file", (0, 1), is_conflict=False, is_leak=True),
        EqualImages("pixels", (3, 4), is_conflict=True, is_leak=False),
    ]
