"""Test heads against slow direct computations, also from a file and in whole runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import draw_noise
from tests.experiment.test_experiment import numbers, run, table
from tests.models.test_nearest import blobs, log_softmax, long, votes_by_hand
from tl_research import InputError, Run, compose
from tl_research.data.sources import Folder
from tl_research.models import nearest
from tl_research.models.head import KNN, MLP, DirectHead, Head, Linear, Prototype

few = settings(deadline=None, max_examples=15)

LEARNED: list[Head] = [Linear(), Linear(dropout=0.4), MLP(), MLP(units=7, layers=3, dropout=0, batch_norm=False)]
MADE: list[DirectHead] = [Prototype(), Prototype(normalize=False)]
MADE += [KNN(), KNN(k=1), KNN(k=4, temperature=0.3), KNN(k=999)]
MADE += [Prototype(whiten=True), Prototype(whiten=True, normalize=False), KNN(whiten=True)]


def others(d: int, n: int = 20, seed: int = 99) -> np.ndarray:
    """Draw features that no head was fitted to."""
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def answers(head: keras.Model, features: np.ndarray) -> np.ndarray:
    found = np.asarray(head(features, training=False))
    assert found.shape == (len(features), head.output_shape[-1])
    assert np.isfinite(found).all()
    return found


# All heads


def built(head: Head, d: int = 6, k: int = 3) -> keras.Model:
    if isinstance(head, DirectHead):
        return head.fit(*blobs(30, d, k), k)
    return head.build(d, k)


@pytest.mark.parametrize("head", [*LEARNED, *MADE], ids=str)
def test_a_saved_head_maps_each_row_to_logits(head: Head, tmp_path: Path) -> None:
    model = built(head)
    assert model.name == "head"
    assert model.input_shape == (None, 6)
    assert model.output_shape == (None, 3)
    expected = answers(model, others(6))
    assert expected.dtype == np.float32
    model.save(tmp_path / "head.keras")
    with zipfile.ZipFile(tmp_path / "head.keras") as file:
        config = json.loads(file.read("config.json"))
    layers = config["config"]["layers"]
    assert {layer["module"].split(".")[0] for layer in layers} == {"keras"}
    assert not [layer for layer in layers if "Lambda" in layer["class_name"]]
    loaded = keras.models.load_model(tmp_path / "head.keras", safe_mode=True)
    np.testing.assert_array_equal(answers(loaded, others(6)), expected)
    one_by_one = np.concatenate([answers(model, row[None]) for row in others(6)])
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict(others(6), batch_size=7, verbose=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("head", [*LEARNED, *MADE], ids=str)
def test_logits_are_float32_whatever_the_precision(head: Head, name: str) -> None:
    keras.config.set_dtype_policy(name)
    try:
        found = answers(built(head), others(6))
    finally:
        keras.config.set_dtype_policy("float32")
    assert found.dtype == np.float32
    if isinstance(head, DirectHead):
        np.testing.assert_array_equal(found, answers(built(head), others(6)))


# Trained heads


def test_a_linear_head_is_a_dense_layer_after_optional_dropout() -> None:
    plain, dropped = Linear().build(6, 3), Linear(dropout=0.4).build(6, 3)
    assert [layer.name for layer in plain.layers] == ["logits"]
    assert [layer.name for layer in dropped.layers] == ["dropout", "logits"]
    assert dropped.layers[0].rate == 0.4
    kernel, bias = plain.get_weights()
    np.testing.assert_allclose(answers(plain, others(6)), others(6) @ kernel + bias, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(dropped(others(6), training=True), dropped(others(6), training=False))


def test_an_mlp_has_the_configured_layers() -> None:
    names = [layer.name for layer in MLP(units=5, layers=2).build(6, 3).layers]
    assert names == ["dense1", "bn1", "relu1", "dropout1", "dense2", "bn2", "relu2", "dropout2", "logits"]
    bare = MLP(units=5, layers=1, dropout=0, batch_norm=False).build(6, 3)
    assert [layer.name for layer in bare.layers] == ["dense1", "relu1", "logits"]
    first, bias, last, end = bare.get_weights()
    expected = np.maximum(others(6) @ first + bias, 0) @ last + end
    np.testing.assert_allclose(answers(bare, others(6)), expected, rtol=1e-4, atol=1e-5)
    assert [w.shape for w in MLP(units=5).build(6, 3).trainable_weights] == [(6, 5), (5,), (5,), (5, 3), (3,)]
    assert MLP(dropout=0.7).build(6, 3).get_layer("dropout1").rate == 0.7


# Prototypes


@few
@given(
    n=st.integers(4, 40), d=st.integers(2, 10), k=st.integers(2, 4), views=st.integers(1, 3), normalize=st.booleans()
)
@example(n=30, d=50, k=2, views=3, normalize=True)
@example(n=30, d=50, k=2, views=3, normalize=False)
def test_a_prototype_head_computes_distances_to_class_means(
    n: int, d: int, k: int, views: int, normalize: bool
) -> None:
    features, labels = blobs(n, d, k, views, spread=9)
    head = Prototype(normalize=normalize).fit(features, labels, k, views)
    assert [layer.name for layer in head.layers] == ["unit", "logits"][not normalize :]
    kernel, bias = nearest.prototypes(features, labels, k, views, normalize=normalize)
    for queries in (others(d), 9 * others(d), features):
        expected = long(queries, normalize) @ kernel + bias
        np.testing.assert_allclose(answers(head, queries), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# Neighbours


@few
@given(
    n=st.integers(3, 60),
    d=st.integers(3, 20),
    classes=st.integers(2, 3),
    views=st.integers(1, 3),
    k=st.none() | st.integers(1, 40),
    temperature=st.none() | st.floats(0.01, 2),
    seed=st.integers(0, 100),
)
@example(n=20, d=6, classes=2, views=3, k=None, temperature=None, seed=0)
@example(n=20, d=6, classes=2, views=3, k=4, temperature=None, seed=0)
@example(n=20, d=6, classes=2, views=3, k=None, temperature=0.5, seed=0)
@example(n=60, d=20, classes=2, views=1, k=1, temperature=0.1, seed=0)
def test_neighbours_vote_as_by_hand(
    n: int, d: int, classes: int, views: int, k: int | None, temperature: float | None, seed: int
) -> None:
    """The nearest neighbour of a training image is itself, whatever its length."""
    features, labels = blobs(n, d, classes, views, spread=2, seed=seed)
    head = KNN(k=k, temperature=temperature).fit(features, labels, classes, views)
    chosen = nearest.choose_k(features, labels, classes, views, k, temperature)
    for queries in (others(d), features, 5 * features):
        expected = np.log(votes_by_hand(features, labels, classes, queries, *chosen))
        np.testing.assert_allclose(log_softmax(answers(head, queries)), expected, atol=2e-3)


def test_equidistant_neighbours_of_two_classes_tie() -> None:
    features = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    labels = np.array([0, 1, 1, 0])
    for k in (1, 2, 3, 4):
        found = log_softmax(answers(KNN(k=k, temperature=0.1).fit(features, labels, 2), features))
        np.testing.assert_allclose(found, np.log(0.5), atol=1e-5)


# Unusual features


ODD = {
    "zeros": np.zeros((8, 5)),
    "one value": np.full((8, 5), 0.1),
    "one row": np.tile(np.arange(5.0), (8, 1)),
    "dead features": np.pad(np.random.default_rng(0).normal(size=(8, 2)), ((0, 0), (0, 3))),
    "one row of zeros": np.vstack([np.zeros((1, 5)), np.random.default_rng(0).normal(size=(7, 5))]),
    "pairs alike": np.random.default_rng(0).normal(size=(4, 5)).repeat(2, axis=0),
    "large": 1e6 * np.random.default_rng(0).normal(size=(8, 5)),
    "small": 1e-4 * np.random.default_rng(0).normal(size=(8, 5)),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("head", MADE, ids=str)
def test_unusual_features_give_finite_logits(head: DirectHead, kind: str) -> None:
    features = ODD[kind].astype(np.float32)
    for labels in (np.arange(8) % 2, np.array([0] * 7 + [1]), np.arange(8)):
        model = head.fit(features, labels, int(labels.max()) + 1)
        for queries in (features, np.zeros((2, 5), np.float32), others(5)):
            answers(model, queries)


@pytest.mark.parametrize("head", MADE, ids=str)
@pytest.mark.parametrize("views", [1, 3])
def test_one_image_per_class_is_enough(head: DirectHead, views: int) -> None:
    features, labels = blobs(4, 6, 4, views)
    found = answers(head.fit(features, labels, 4, views), features)
    if not isinstance(head, KNN) or head.k in (None, 1):
        assert np.array_equal(found.argmax(axis=1), labels)


# Whole runs


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw two classes that do not differ, so that predictions are uncertain."""
    return draw_noise(tmp_path_factory.mktemp("noise"), ("train", "test"), 12)


def assert_saved_model_answers_as_recorded(done: Run, root: Path) -> None:
    rows = table(done.directory / "predictions.csv")
    data = Folder(root=str(root)).load()
    place = {str(path): i for i, path in enumerate(data.paths)}
    model = keras.models.load_model(done.directory / "model.keras", safe_mode=True)
    pixels = np.stack([data.pixels(place[row["path"]], 32) for row in rows]).astype(np.float32)
    probabilities = np.exp(log_softmax(np.asarray(model(pixels, training=False))))
    told = np.array([[float(row[f"p_{name}"]) for name in done.class_names()] for row in rows])
    np.testing.assert_allclose(probabilities, told, atol=1e-3)
    assert {row["split"] for row in rows} == {"val", "test"}


def accuracy(done: Run, split: str, name: str = "predictions.csv") -> float:
    rows = [row for row in table(done.directory / name) if row["split"] == split]
    return float(np.mean([row["label"] == row["prediction"] for row in rows]))


@pytest.mark.parametrize("head", ["prototype", "knn"])
@pytest.mark.slow
def test_a_run_records_the_predictions_of_its_saved_head(tmp_path: Path, colours: Path, noise: Path, head: str) -> None:
    done = run(tmp_path / "colours", colours, f"head={head}")
    assert done.status["state"] == "done"
    assert done.metrics["test_accuracy"] > 0.9
    [row] = table(done.directory / "history.csv")
    assert (row["stage"], row["epoch"]) == ("head", "0")
    assert_saved_model_answers_as_recorded(done, colours)
    doubtful = run(tmp_path / "noise", noise, f"head={head}", "callbacks=none")
    assert doubtful.metrics["test_loss"] > 0.3
    assert_saved_model_answers_as_recorded(doubtful, noise)
    adam = run(tmp_path / "adam", noise, f"head={head}", "callbacks=none", "optimizer=adam")
    assert numbers(adam) == numbers(doubtful), "whatever the optimizer: nothing is trained"


def test_the_saved_head_uses_validation_images_the_scored_not(tmp_path: Path, noise: Path) -> None:
    done = run(tmp_path / "run", noise, "head=knn", "head.k=1", "callbacks=none")
    train, val = done.metrics["num_train"], done.metrics["num_val"]
    bank, votes = done.model().get_layer("head").get_weights()
    assert bank.shape == (32, train + val)
    assert votes.sum() == train + val
    assert not done.model().get_layer("head").trainable_weights
    assert accuracy(done, "val") == 1, "each is its own nearest neighbour"
    assert accuracy(done, "val", "validation.csv") == done.metrics["val_accuracy"] < 1
    assert accuracy(done, "test") == done.metrics["test_accuracy"] < 0.9


def record_fits(monkeypatch: pytest.MonkeyPatch, recipe: type[DirectHead]) -> list[tuple[np.ndarray, int, np.ndarray]]:
    """Record the features, the views and the first weights of each head that is made."""
    made: list[tuple[np.ndarray, int, np.ndarray]] = []
    fit = recipe.fit

    def recorded(self: Any, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int = 1) -> keras.Model:
        assert (labels.reshape(-1, views) == labels[::views, None]).all()
        head = fit(self, features, labels, num_classes, views)
        made.append((features, views, head.get_weights()[0]))
        return head

    monkeypatch.setattr(recipe, "fit", recorded)
    return made


@pytest.mark.parametrize(("head", "recipe"), [("prototype", Prototype), ("knn", KNN)])
def test_a_direct_head_uses_all_views(
    tmp_path: Path, noise: Path, head: str, recipe: type[DirectHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record_fits(monkeypatch, recipe)
    options = [f"head={head}", "callbacks=none", "data/augment=light", "features.views=3"]
    done = run(tmp_path / "run", noise, *options)
    train, val, test = (done.metrics[f"num_{split}"] for split in ("train", "val", "test"))
    assert done.metrics["features_computed"] == 3 * (train + val) + val + test
    different = [(len(np.unique(features, axis=0)), len(features), views) for features, views, _ in made]
    assert different == [(n, n, 3) for n in (3 * train, 3 * (train + val))], "one to be judged, one to be kept"
    assert_saved_model_answers_as_recorded(done, noise)
    again = run(tmp_path / "again", noise, *options)
    assert again.metrics["features_computed"] == 0
    assert numbers(again) == numbers(done)


@pytest.mark.slow
def test_later_stages_continue_training_a_prototype_head(
    tmp_path: Path, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record_fits(monkeypatch, Prototype)
    done = run(tmp_path / "run", noise, "head=prototype", "transfer=finetune", "transfer.backbone.epochs=1",
               "transfer.backbone.learning_rate=1e-3", "callbacks=none")  # fmt: skip
    assert [row["stage"] for row in table(done.directory / "history.csv")] == ["head", "backbone"]
    [(features, _, before)] = made
    assert len(features) == done.metrics["num_train"], "validation images are still needed"
    kernel, _ = done.model().get_layer("head").get_weights()
    assert not np.array_equal(kernel, before)
    np.testing.assert_allclose(kernel, before, atol=0.05 * np.abs(kernel).max(), err_msg="it starts from there")
    assert_saved_model_answers_as_recorded(done, noise)


@pytest.mark.parametrize("head", ["linear", "prototype", "knn"])
@pytest.mark.slow
def test_two_frozen_stages_refit_on_validation_images_too(tmp_path: Path, noise: Path, head: str) -> None:
    options = [f"head={head}", "callbacks.tensorboard=null"]
    second = "+transfer.again={_target_: tl_research.training.stage.Stage, epochs: 1}"
    one, two = run(tmp_path / "one", noise, *options), run(tmp_path / "two", noise, *options, second)
    assert [row["stage"] for row in table(two.directory / "history.csv")] == ["head", "again"]
    assert_saved_model_answers_as_recorded(two, noise)
    for a, b in zip(*(done.model().get_layer("head").get_weights() for done in (one, two)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["head=knn", "transfer=finetune"], r"^head=knn does not learn, and transfer\.backbone .*add transfer=frozen$"),
        (["head=knn", "transfer=scratch"], r"^head=knn does not learn, and transfer\.all"),
        (["head=prototype", "transfer=scratch"], r"^the head is made from features, .* add head=linear$"),
        (["head=knn", "head.k=0"], r"^head\.k=0: should be"),
        (["head=knn", "head.temperature=0"], r"^head\.temperature=0: should be"),
        (["head=prototype", "head.k=3"], r"^head\.k"),
    ],
    ids=str,
)  # fmt: skip
def test_unsupported_combinations_with_a_head_are_refused(options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        compose(["backbone=tiny", *options])
    assert "\n" not in str(caught.value)
