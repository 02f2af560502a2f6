"""Pictures of results: names of classes are drawn to the letter, or as numbers where no font has their letters."""

from __future__ import annotations

import numpy as np

from tl_research.reports import figures

NAMES = ["a_$x_y_z$", r"\frac{", "[red]", "b\udcff\n", "Żółć", "热狗", "\N{HOT DOG}"]


def test_every_name_can_be_drawn_without_a_warning() -> None:
    many = len(NAMES)
    drawn = figures.drawable_names(NAMES)
    assert drawn[:5] == ["a_$x_y_z$", r"\frac{", "[red]", "b\\udcff\\n", "Żółć"]
    assert all(name in (NAMES[number], f"#{number}") for number, name in enumerate(drawn[5:], 5))
    pixels = np.full((many, 8, 8, 3), 7, np.uint8)
    samples = [(pixels[0], label, np.eye(many)[label - 1]) for label in range(many)]
    bins = [{"confidence": 0.9, "accuracy": 0.5, "num": 3}]
    for page in (
        figures.reliability_diagram({"plain": bins, "calibrated": bins}, 2.0),
        figures.confusion_matrix(np.arange(many), np.arange(many), NAMES),
        figures.predictions(samples, NAMES),
        figures.batch(pixels, np.eye(many), NAMES),
        figures.learning_rates("stage $a_b_c$", [1, 2], [1, 2], [1, 2], 1),
    ):
        assert page.std() > 0


def test_a_letter_that_no_font_has_makes_a_number() -> None:
    assert figures.drawable_names(["a", "\N{HOT DOG}\ue000\U000f0000"]) == ["a", "#1"]
