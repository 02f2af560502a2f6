"""Test that sauce drawings are balanced and repeatable, and that nothing but the sauce reveals the class."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tl_research import compose
from tl_research.data.synthetic import demo
from tl_research.data.synthetic.paint import Canvas
from tl_research.data.synthetic.sauce import COURSES, course, sauce_scene
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

SIZES = {"train": 6, "val": 3, "test": 3}


def test_the_recipe_draws_the_configured_numbers() -> None:
    sizes = [f"data.num_{split}={size}" for split, size in SIZES.items()]
    data = compose(["data=hot_dog_sauce", *sizes]).data.load()
    assert list(data.class_names) == list(COURSES)
    for split, size in SIZES.items():
        assert np.bincount(data.labels[data.indices(split)]).tolist() == [size // 3] * 3


def test_the_cache_name_differs_from_the_demos() -> None:
    assert demo.cache_name(SIZES, 0, demo.SAUCE) != demo.cache_name(SIZES, 0)


def test_lines_are_crossed_parallel_or_single() -> None:
    rng = np.random.default_rng(0)
    for name, lines in ((name, course(name, 1.0, 0.3, rng)) for name in COURSES for _ in range(20)):
        along = np.linspace(-0.99, 0.99, 500)
        first, *others = (np.interp(along, u, v) for u, v in lines)
        assert len(others) == (name != "single")
        if others:
            apart = others[0] - first
            assert (np.abs(np.diff(np.sign(apart))).sum() > 0) == (name == "crossed")


def test_a_line_has_its_width_also_at_the_pictures_edge() -> None:
    canvas = Canvas(np.zeros((60, 80, 3), np.float32), np.random.default_rng(0))
    patch = canvas.patch(70, 30, 0.3, 20, 1.5)
    along = np.linspace(-2, 2, 400)
    distance = patch.line(along, np.zeros(400), reach=0.5)
    inside = np.abs(patch.v) < 0.4
    np.testing.assert_allclose(distance[inside], np.abs(patch.v[inside]), atol=0.01)


def looks(count: int, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw thumbnails and mean colours `(3 * count, 16 * 16 * 3 + 3)`, with their classes."""
    rows = []
    for label, name in enumerate(COURSES):
        for number in range(count):
            picture = sauce_scene(name, np.random.default_rng([split, label, number])).resize((64, 64))
            thumbnail = np.asarray(picture.resize((16, 16), Image.Resampling.BOX)) / 255
            rows.append([*thumbnail.ravel(), *thumbnail.mean((0, 1))])
    return np.array(rows, np.float32), np.repeat(np.arange(len(COURSES)), count)


@pytest.mark.slow
def test_neither_colour_nor_layout_reveals_the_class() -> None:
    (features, labels), (judged, truth) = looks(9, split=0), looks(9, split=1)
    solution = solve(features, labels, LBFGS(), seed=0)
    assert np.mean((judged @ solution.kernel + solution.bias).argmax(1) == truth) < 0.55
