"""Explanations: where an image speaks for its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from tests.experiment.test_experiment import run, table
from tl_research import compose
from tl_research.commands.explain import explain_command
from tl_research.data.decode import read_pixels
from tl_research.errors import InputError
from tl_research.evaluation.explain import Explainer, add_maps, overlay
from tl_research.reports.explanations import doubtful_images, heat_maps, write_explanations
from tl_research.runs.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Callable[[str], Run]:
    runs: dict[str, Run] = {}

    def train(head: str) -> Run:
        if head not in runs:
            folder = tmp_path_factory.mktemp(head)
            runs[head] = run(folder / "run", colours, f"head={head}", "callbacks=none")
        return runs[head]

    return train


def picture(path: Path, square: tuple[int, int] | None = None) -> Path:
    """Draw grey noise, with a red square at this corner."""
    pixels = np.random.default_rng(0).integers(120, 136, (64, 64, 3)).astype(np.uint8)
    if square:
        row, column = square
        pixels[row : row + 24, column : column + 24] = (250, 20, 20)
    Image.fromarray(pixels).save(path)
    return path


def test_the_map_of_a_linear_head_sums_to_its_logit(tmp_path: Path, trained: Callable[[str], Run]) -> None:
    done = trained("linear")
    bias = done.model().get_layer("head").get_layer("logits").get_weights()[1]
    names = done.class_names()
    for name in names:
        (one,) = Explainer(done, name).explain([picture(tmp_path / "a.png", (4, 36))])
        assert one.heat is not None
        assert one.explained == name
        assert one.heat.sum() + bias[names.index(name)] == pytest.approx(one.logit, abs=1e-3)


def test_added_maps_keep_the_sum_and_the_place() -> None:
    fine, coarse = np.zeros((8, 8)), np.zeros((4, 4))
    fine[1, 6] = coarse[0, 3] = 8.0
    both = add_maps([coarse, fine])
    assert both.sum() == pytest.approx(16)
    assert np.unravel_index(both.argmax(), both.shape) == (1, 6)


@pytest.mark.parametrize("head", ["linear", "knn"])
@pytest.mark.parametrize("method", ["map", "occlusion"])
def test_heat_is_where_the_object_is(tmp_path: Path, trained: Callable[[str], Run], head: str, method: str) -> None:
    explainer = Explainer(trained(head), "red", method)
    paths = [picture(tmp_path / f"{row}-{column}.png", (row, column)) for row in (4, 36) for column in (4, 36)]
    shares = []
    for one, (row, column) in zip(explainer.explain(paths), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        assert one.heat is not None
        positive = np.maximum(one.heat - np.median(one.heat), 0)
        half = len(positive) // 2
        shares.append(positive[row * half :, column * half :][:half, :half].sum() / positive.sum())
    assert np.mean(shares) > 0.375  # 1.5 times the share of its area


def pasted(photos: Path) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """Put 60 photographs at half the network's size into a random quarter of a plain canvas; yield it and the place."""
    rng = np.random.default_rng(0)
    for path in sorted(photos.rglob("*.jpg"))[:60]:
        top, left = rng.integers(0, 2, 2) * 112
        canvas, place = np.full((224, 224, 3), 128, np.uint8), (slice(top, top + 112), slice(left, left + 112))
        canvas[place] = read_pixels(path, 112, "squash")
        yield canvas, place


@pytest.mark.slow
def test_maps_find_the_object_and_need_the_weights(tmp_path: Path, photos: Path) -> None:
    """At least 1.5 times the weight of a centred square of the same area; with random weights nothing of that is left
    (Adebayo et al. 2018, arXiv 1810.03292). docs/benchmarks.md has the numbers."""
    done = compose(["data=folder", f"data.root={photos}", "callbacks=none", "features.store=null"]).run(
        tmp_path / "run"
    )
    explainer, shares, maps, centre = Explainer(done), [], [], (slice(56, 168), slice(56, 168))
    for canvas, place in pasted(photos):
        logits, heat = explainer.explain_pixels(canvas, None)
        large = Image.fromarray(heat.astype(np.float32)).resize((224, 224), Image.Resampling.BILINEAR)
        positive = np.maximum(np.asarray(large), 0)
        shares.append([positive[part].sum() / positive.sum() for part in (place, centre)])
        maps.append((canvas, int(logits.argmax()), heat))
    inside, centred = np.mean(shares, axis=0)
    assert inside >= 1.5 * centred
    random = compose(["backbone.weights=null"]).backbone.build()
    explainer.model.get_layer("backbone").set_weights(random.get_weights())
    alike = [spearmanr(heat.ravel(), explainer.explain_pixels(*what)[1].ravel())[0] for *what, heat in maps]
    assert np.mean(alike) < 0.3
    sys.stdout.write(f"{len(maps)} images: {inside:.3f} in the object, {centred:.3f} centred; {np.mean(alike):.2f}")


def test_each_image_has_a_row_and_a_picture(tmp_path: Path, trained: Callable[[str], Run]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [picture(tmp_path / "<b>.png"), broken, picture(tmp_path / "c.png", (4, 4))]
    page, failed = write_explanations(Explainer(trained("linear")).explain(paths), 3, tmp_path / "out")
    rows = table(tmp_path / "out" / "explain.csv")
    assert failed == 1
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    for row in (rows[0], rows[2]):
        with Image.open(tmp_path / "out" / row["picture"]) as shown:
            assert shown.size == (224, 224)
        assert np.load(tmp_path / "out" / row["heat"]).ndim == 2
        assert 0.5 <= float(row["probability"]) <= 1
    assert "<b>" not in page.read_text()
    assert overlay(np.zeros((32, 32, 3), np.uint8), np.zeros((4, 4), np.float32)).size == (224, 224)


def test_the_most_doubtful_images_are_explained_by_default(trained: Callable[[str], Run]) -> None:
    done = trained("linear")
    paths = doubtful_images(done)
    tested = [row["path"] for row in table(done.directory / "predictions.csv") if row["split"] == "test"]
    assert paths
    assert {str(path) for path in paths} <= set(tested)


def test_maps_end_when_their_time_is_up(trained: Callable[[str], Run]) -> None:
    done = trained("linear")
    paths = doubtful_images(done)
    assert len(heat_maps(done, paths, 0.0)) == 1
    assert list(heat_maps(done, paths)) == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_name": "cat"}, "--class cat: the run's classes are blue, red"),
        ({"method": "shap"}, "--method shap: give"),
    ],
)
def test_unknown_classes_and_methods_are_named(
    trained: Callable[[str], Run], options: dict[str, str], message: str
) -> None:
    done = trained("linear")
    with pytest.raises(InputError, match=message):
        explain_command(done.directory, **options)
