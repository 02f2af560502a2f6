"""Test that drawings are repeatable, complete or absent, and that colour does not separate the classes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_research.data.synthetic import demo
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

SIZES = {"train": 12, "test": 6}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.draw(tmp_path_factory.mktemp("demo") / "a", {"train": 80, "test": 40}, seed=0)


def test_pictures_are_jpegs_in_the_right_number_and_sizes(drawn: Path) -> None:
    found = contents(drawn)
    assert len(found) == 120
    for split, size in (("train", 80), ("test", 40)):
        assert [len(list((drawn / split / name).iterdir())) for name in demo.CLASSES] == [size // 2] * 2
    sides = []
    for name in found:
        with Image.open(drawn / name) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sides.append(image.size)
    assert np.min(sides) >= 200
    assert np.max(sides) <= 700
    assert len(set(sides)) > 100


def test_a_picture_depends_on_seed_split_class_and_number(tmp_path: Path, drawn: Path) -> None:
    here = contents(demo.draw(tmp_path / "b", SIZES, seed=0, processes=1))
    there = contents(drawn)
    assert {name: there[name] for name in here} == here
    other = contents(demo.draw(tmp_path / "c", SIZES, seed=1, processes=2))
    assert not any(other[name] == here[name] for name in here)
    assert len(set(here.values())) == len(here)


def test_existing_pictures_are_not_drawn_again(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "draw_all", lambda *_: pytest.fail("drawn again"))
    assert demo.draw(drawn, SIZES, seed=0) == drawn


def test_a_failed_drawing_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_all: Callable[..., None] = demo.draw_all

    def half(folder: Path, *rest: object) -> None:
        (folder / "train" / "hot_dog" / "0000.jpg").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "draw_all", half)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path / "a", SIZES, seed=0)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "draw_all", draw_all)
    assert len(contents(demo.draw(tmp_path / "a", SIZES, seed=0))) == 18
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_drawing_left_is_removed(tmp_path: Path) -> None:
    for killed in (".a.unfinished", ".a.x7_b"):
        (tmp_path / killed / "train" / "hot_dog").mkdir(parents=True)
    (tmp_path / ".a.lock").touch()
    demo.draw(tmp_path / "a", SIZES, seed=0, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(contents(tmp_path / "a")) == 18


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)\n")
    with pytest.raises(RuntimeError, match="failed"):
        demo.draw(tmp_path / "a", SIZES, seed=0)
    assert not (tmp_path / "a").exists()


def test_concurrent_drawings_give_the_same_pictures(tmp_path: Path) -> None:
    ended: list[Path] = []
    threads = [
        threading.Thread(target=lambda: ended.append(demo.draw(tmp_path / "a", SIZES, seed=0))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [tmp_path / "a"] * 2
    assert len(contents(tmp_path / "a")) == 18
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_cache_names_differ_between_drawings() -> None:
    names = {demo.cache_name(sizes, seed) for sizes in (SIZES, {"train": 13, "test": 6}) for seed in (0, 1)}
    assert len(names) == 4


def test_colours_alone_do_not_separate_the_classes(drawn: Path) -> None:
    def histograms(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for label, name in enumerate(demo.CLASSES):
            for path in sorted((drawn / split / name).iterdir()):
                pixels = np.asarray(Image.open(path).resize((64, 64))).astype(int) // 64
                codes = (pixels[..., 0] * 4 + pixels[..., 1]) * 4 + pixels[..., 2]
                rows.append(np.bincount(codes.ravel(), minlength=64) / codes.size)
                labels.append(label)
        return np.array(rows, np.float32), np.array(labels)

    solution = solve(*histograms("train"), LBFGS(), seed=0)
    features, labels = histograms("test")
    assert np.mean((features @ solution.kernel + solution.bias).argmax(1) == labels) <= 0.85
