"""Several networks side by side, and the choice among several: rows, names, scales, saved files."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tests.experiment.test_experiment import run
from tl_research import InputError, compose
from tl_research.evaluation.explain import Explainer
from tl_research.evaluation.predict import predict_logits
from tl_research.features.table import network_digest
from tl_research.metrics.probabilities import softmax
from tl_research.models.combined import parts_of
from tl_research.serving.export import export_run
from tl_research.serving.snippets import FORMATS

TWO = ["backbone=combined", "backbone.parts=[tiny,{name: tiny@32,seed: 1}]"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[efficientnet_lite0,efficientnet_lite9]", ["there is no backbone efficientnet_lite9", "nearest:"]),
        ("[efficientnet_lite0]", ["two parts or more", "use backbone=efficientnet_lite0"]),
        ("[]", ["two parts or more"]),
        ("tiny+tiny", ["tiny is there twice"]),
        ("[tiny,tiny]", ["tiny is there twice", "tiny@128"]),
        ("[tiny,combined]", ["there is no backbone combined"]),
        ("[tiny,{name: tiny, image_sise: 9}]", ["tiny has no key image_sise", "nearest: image_size"]),
        ("[tiny,{image_size: 9}]", ["has no name"]),
        ("[tiny,saved]", ["saved needs its size", "saved@224"]),
        ("[tiny,tiny@5]", ["image_size=5", "at least 32 pixels"]),
    ],
)
def test_bad_parts_are_one_line(parts: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compose(["backbone=combined", f"backbone.parts={parts}"])
    assert all(word in str(caught.value) for word in ["backbone.", *words])


def test_recipes_of_several_are_values() -> None:
    one, other = (compose(TWO).backbone for _ in range(2))
    assert len({one, other, compose(["backbone=auto", "backbone.among=[tiny]"]).backbone}) == 2


def test_random_weights_are_those_of_each_part() -> None:
    options = ["backbone=combined", "backbone.parts=efficientnet_lite0+efficientnet_lite1", "backbone.weights=null"]
    parts = compose(options).backbone.built_parts
    assert [(part.weights, part.seed) for part in parts] == [(None, 0), (None, 1)]


def test_a_part_without_weights_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"backbone\.parts: resnet50: resnet50_weights.* is needed and not there"):
        compose(["backbone=combined", "backbone.parts=[tiny,resnet50]"]).preflight()


@pytest.mark.slow
def test_a_part_takes_the_image_in_its_own_size(tmp_path: Path) -> None:
    whole = compose([*TWO, "backbone.image_size=64"]).backbone.build()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    alone, resized = parts_of(whole)
    assert network_digest(alone) == network_digest(compose(["backbone=tiny"]).backbone.build())
    small = compose(["backbone=tiny", "backbone.image_size=32", "backbone.seed=1"]).backbone.build()
    halved = keras.ops.image.resize(images, (32, 32))
    np.testing.assert_allclose(resized.predict(images, verbose=0), small.predict(halved, verbose=0), atol=1e-5)
    both = np.concatenate([part.predict(images, verbose=0) for part in (alone, resized)], axis=1)
    np.testing.assert_allclose(whole.predict(images, verbose=0), both, atol=1e-5)


def test_a_layer_gives_the_features() -> None:
    names = [layer.name for layer in compose(["backbone=tiny"]).backbone.build().layers if "conv" in layer.name]
    whole = compose(["backbone=combined", f"backbone.parts=[tiny,tiny@{names[0]}]"]).backbone.build()
    last, first = parts_of(whole)
    assert first.count_params() < last.count_params()
    with pytest.raises(InputError, match=f"tiny@konv has no layer konv; nearest: .*{names[0][:4]}"):
        compose(["backbone=combined", "backbone.parts=[tiny,tiny@konv]"]).backbone.build()


def test_rows_are_stored_for_each_part(tmp_path: Path, colours: Path) -> None:
    def computed(*overrides: str) -> int:
        store = f"features.store={tmp_path / 'store'}"
        options = ["data=folder", f"data.root={colours}", store, "callbacks=none", *overrides]
        return int(compose(options).extract(tmp_path / str(len(list(tmp_path.iterdir())))).metrics["features_computed"])

    assert computed("backbone=tiny") == 36
    assert computed(*TWO) == 36  # the other part's
    assert computed("backbone=combined", "backbone.parts=[{name: tiny@32,seed: 1},tiny]") == 0


@pytest.mark.parametrize(
    "head", ["linear", *(pytest.param(head, marks=pytest.mark.slow) for head in ("prototype", "knn"))]
)
def test_the_saved_file_answers_as_the_run_did(tmp_path: Path, colours: Path, head: str) -> None:
    done = run(tmp_path / "run", colours, *TWO, f"head={head}", "callbacks=none")
    rows = done.answers("predictions.csv")
    logits = np.array(list(predict_logits(done, [Path(row["path"]) for row in rows])))
    said = np.array([[float(row[f"p_{name}"]) for name in done.class_names()] for row in rows])
    np.testing.assert_allclose(softmax(logits), said, atol=1e-4)
    (one,) = Explainer(done).explain([Path(rows[0]["path"])])
    assert one.heat is not None


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_exports_answer_as_the_run_does(tmp_path: Path, colours: Path, format_: str) -> None:
    done = run(tmp_path / "run", colours, *TWO, "backbone.image_size=64", "callbacks=none")
    exported = export_run(done, format_)  # refuses what differs
    assert (exported.changed, exported.num_images) == ([], 16)


@pytest.mark.slow
def test_all_parts_are_fine_tuned(tmp_path: Path, colours: Path) -> None:
    done = run(tmp_path / "run", colours, *TWO, "transfer=finetune_all", "transfer.backbone.epochs=1",
               "callbacks=none")  # fmt: skip
    assert done.metrics["num_trainable"] > done.metrics["num_parameters"] * 0.9
    (logits,) = predict_logits(done, [Path(done.answers("predictions.csv")[-1]["path"])])
    said = [float(done.answers("predictions.csv")[-1][f"p_{name}"]) for name in done.class_names()]
    np.testing.assert_allclose(softmax(np.asarray(logits)[None])[0], said, atol=1e-4)
