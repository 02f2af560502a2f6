"""Test heads against slow direct computations, also from a file and in whole runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import draw_noise
from tests.experiment.test_experiment import numbers, run, table
from tl_research import InputError, Run, compose
from tl_research.data.sources import Folder
from tl_research.models import nearest
from tl_research.models.head import KNN, MLP, DirectHead, Head, Linear, Prototype

few = settings(deadline=None, max_examples=15)

LEARNED: list[Head] = [Linear(), Linear(dropout=0.4), MLP(), MLP(units=7, layers=3, dropout=0, batch_norm=False)]
MADE: list[DirectHead] = [
    Prototype(),
    Prototype(normalize=False),
    KNN(),
    KNN(k=1),
    KNN(k=4, temperature=0.3),
    KNN(k=999),
]


def blobs(n: int, d: int, k: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % k)
    return (rng.normal(size=(k, d))[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


def others(d: int, n: int = 20, seed: int = 99) -> np.ndarray:
    """Draw features that no head was fitted to."""
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def answers(head: keras.Model, features: np.ndarray) -> np.ndarray:
    found = np.asarray(head(features, training=False))
    assert found.shape == (len(features), head.output_shape[-1])
    assert np.isfinite(found).all()
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@contextmanager
def policy(name: str) -> Iterator[None]:
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


# All heads


def built(head: Head, d: int = 6, k: int = 3) -> keras.Model:
    if isinstance(head, DirectHead):
        return head.fit(*blobs(30, d, k), k)
    return head.build(d, k)


@pytest.mark.parametrize("head", [*LEARNED, *MADE], ids=str)
def test_a_head_maps_features_to_logits_with_built_in_layers(head: Head, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("head", [*LEARNED, *MADE], ids=str)
def test_logits_are_float32_whatever_the_precision(head: Head, name: str) -> None:
    with policy(name):
        model = built(head)
        found = answers(model, others(6))
    assert found.dtype == np.float32
    if isinstance(head, DirectHead):
        np.testing.assert_array_equal(found, answers(built(head), others(6)))


@pytest.mark.parametrize("head", [*LEARNED, *MADE], ids=str)
def test_logits_do_not_depend_on_the_rest_of_the_batch(head: Head) -> None:
    model = built(head)
    rows = others(6)
    whole = answers(model, rows)
    one_by_one = np.concatenate([answers(model, row[None]) for row in rows])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict(rows, batch_size=7, verbose=0), whole, rtol=1e-4, atol=1e-4)


def test_base_classes_are_abstract() -> None:
    with pytest.raises(NotImplementedError):
        Head().build(4, 2)
    with pytest.raises(NotImplementedError):
        DirectHead().fit(*blobs(4, 2, 2), 2)


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


def unit(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return rows / np.where(lengths > 0, lengths, 1)


@few
@given(n=st.integers(4, 40), d=st.integers(2, 10), k=st.integers(2, 4), normalize=st.booleans())
def test_a_prototype_head_predicts_the_nearest_class_mean(n: int, d: int, k: int, normalize: bool) -> None:
    features, labels = blobs(n, d, k)
    head = Prototype(normalize=normalize).fit(features, labels, k)
    rows, queries = (unit(x) if normalize else x.astype(np.float64) for x in (features, others(d, 50)))
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(k)])
    distances = ((queries[:, None] - means) ** 2).sum(axis=2)
    nearest_, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest_ > 1e-4 * (1 + nearest_)
    found = answers(head, others(d, 50))
    assert np.array_equal(found.argmax(axis=1)[clear], distances.argmin(axis=1)[clear])
    differences, falls = distances - distances[:, :1], found[:, :1] - found
    s = np.sum(falls * differences) / np.sum(differences**2)
    assert s > 0
    np.testing.assert_allclose(falls, s * differences, rtol=1e-2, atol=1e-3 * np.abs(falls).max())


def test_only_a_normalizing_prototype_head_ignores_length() -> None:
    features, labels = blobs(30, 5, 3)
    for normalize in (True, False):
        head = Prototype(normalize=normalize).fit(features, labels, 3)
        same = np.allclose(answers(head, others(5)), answers(head, 9 * others(5)), rtol=1e-4, atol=1e-3)
        assert same == normalize
        assert [layer.name for layer in head.layers] == ["unit", "logits"][not normalize :]


# Neighbours


def votes_by_hand(
    features: np.ndarray, labels: np.ndarray, classes: int, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Compute log-probabilities `(n, classes)` of votes of the `k` nearest by cosine, plus one vote for all classes."""
    rows, found = unit(features), []
    for query in unit(queries):
        cosines = [float(row @ query) for row in rows]
        votes = np.full(classes, 1 / classes)
        for i in sorted(range(len(rows)), key=lambda i: -cosines[i])[:k]:
            votes[labels[i]] += np.exp((cosines[i] - max(cosines)) / temperature)
        found.append(np.log(votes / votes.sum()))
    return np.array(found)


@few
@given(
    n=st.integers(3, 30),
    d=st.integers(2, 10),
    classes=st.integers(2, 3),
    k=st.integers(1, 40),
    temperature=st.floats(0.01, 2),
    seed=st.integers(0, 100),
)
def test_neighbours_vote_as_by_hand(n: int, d: int, classes: int, k: int, temperature: float, seed: int) -> None:
    features, labels = blobs(n, d, classes, seed)
    head = KNN(k=k, temperature=temperature).fit(features, labels, classes)
    expected = votes_by_hand(features, labels, classes, others(d), k, temperature)
    np.testing.assert_allclose(log_softmax(answers(head, others(d))), expected, atol=2e-3)


@pytest.mark.parametrize("given_", [{}, {"k": 4}, {"temperature": 0.5}], ids=str)
@pytest.mark.parametrize("views", [1, 3])
def test_leave_one_out_choice_leaves_out_all_views_of_an_image(views: int, given_: dict[str, Any]) -> None:
    features, labels = blobs(20, 6, 2, spread=2)
    features, labels = features.repeat(views, axis=0), labels.repeat(views)
    features += 0.05 * others(6, len(features))
    head = KNN(**given_).fit(features, labels, 2, views)
    k, temperature = nearest.choose_k(features, labels, 2, views, given_.get("k"), given_.get("temperature"))
    expected = votes_by_hand(features, labels, 2, others(6), k, temperature)
    np.testing.assert_allclose(log_softmax(answers(head, others(6))), expected, atol=2e-3)


def test_prototypes_leave_out_all_views_of_an_image() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 50)).repeat(3, axis=0).astype(np.float32), (np.arange(30) % 2).repeat(3)
    together, apart = (Prototype().fit(features, labels, 2, views) for views in (3, 1))
    kernel, bias = nearest.prototypes(features, labels, 2, 3, normalize=True)
    np.testing.assert_array_equal(together.get_weights()[0], kernel)
    np.testing.assert_array_equal(together.get_weights()[1], bias)
    assert np.abs(apart.get_weights()[0]).max() > 1.5 * np.abs(kernel).max(), "or views would not matter"


@few
@given(n=st.integers(2, 60), d=st.integers(3, 20), seed=st.integers(0, 1000))
def test_the_nearest_neighbour_of_a_training_image_is_itself(n: int, d: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    labels = np.arange(n) % 2
    head = KNN(k=1).fit(features, labels, 2)
    assert np.array_equal(answers(head, features).argmax(axis=1), labels)
    assert np.array_equal(answers(head, 5 * features).argmax(axis=1), labels), "whatever its length"


def test_neighbours_never_give_certainty() -> None:
    features, labels = blobs(40, 6, 4, spread=0.01)
    for k in (1, 5):
        probability = np.exp(log_softmax(answers(KNN(k=k, temperature=0.1).fit(features, labels, 4), features)))
        assert (probability.max(axis=1) < (k + 0.26) / (k + 1)).all()
        assert (probability.min(axis=1) > 0.2 / (k + 1)).all()


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
    features, labels = blobs(4, 6, 4)
    features, labels = features.repeat(views, axis=0), labels.repeat(views)
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


def in_split(done: Run, split: str, name: str = "predictions.csv") -> float:
    """Compute the accuracy of a table of predictions."""
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
    assert in_split(done, "val") == 1, "each is its own nearest neighbour"
    assert in_split(done, "val", "validation.csv") == done.metrics["val_accuracy"] < 1
    assert in_split(done, "test") == done.metrics["test_accuracy"] < 0.9


def test_a_heads_keys_have_an_effect(tmp_path: Path, noise: Path) -> None:
    run_ = run(tmp_path / "knn", noise, "head=knn", "head.k=2", "head.temperature=0.5", "callbacks=none")
    data = Folder(root=str(noise)).load()
    model = run_.model()
    features = [
        np.asarray(model.get_layer("backbone")(np.stack([data.pixels(i, 32) for i in indices]).astype(np.float32)))
        for indices in (data.indices("train", "val"), data.indices("test"))
    ]
    expected = votes_by_hand(features[0], data.labels[data.indices("train", "val")], 2, features[1], 2, 0.5)
    told = [[float(row["p_a"]), float(row["p_b"])] for row in table(run_.directory / "predictions.csv")]
    np.testing.assert_allclose(told[-len(expected) :], np.exp(expected), atol=1e-3)
    raw = run(tmp_path / "prototype", noise, "head=prototype", "head.normalize=false", "callbacks=none").model()
    assert [layer.name for layer in raw.get_layer("head").layers] == ["logits"]


@pytest.mark.parametrize("head", ["prototype", "knn"])
def test_a_direct_head_uses_all_views(tmp_path: Path, noise: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    recipe = {"prototype": Prototype, "knn": KNN}[head]
    fit = recipe.fit

    def recorded(self: Any, features: np.ndarray, labels: np.ndarray, num_classes: int, views: int = 1) -> keras.Model:
        made.append((len(features), views))
        assert len(np.unique(features, axis=0)) == len(features) == len(labels)
        assert (labels.reshape(-1, views) == labels[::views, None]).all()
        return fit(self, features, labels, num_classes, views)

    monkeypatch.setattr(recipe, "fit", recorded)
    options = [f"head={head}", "callbacks=none", "data/augment=light", "features.views=3"]
    done = run(tmp_path / "run", noise, *options)
    train, val, test = (done.metrics[f"num_{split}"] for split in ("train", "val", "test"))
    assert done.metrics["features_computed"] == 3 * (train + val) + val + test
    assert made == [(3 * train, 3), (3 * (train + val), 3)], "one to be judged, one to be kept"
    assert_saved_model_answers_as_recorded(done, noise)
    again = run(tmp_path / "again", noise, *options)
    assert again.metrics["features_computed"] == 0
    assert numbers(again) == numbers(done)


@pytest.mark.slow
def test_later_stages_continue_training_a_prototype_head(
    tmp_path: Path, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[np.ndarray]] = []
    seen: list[int] = []
    fit = Prototype.fit

    def recorded(self: Prototype, features: np.ndarray, *rest: Any) -> keras.Model:
        head = fit(self, features, *rest)
        made.append(head.get_weights())
        seen.append(len(features))
        return head

    monkeypatch.setattr(Prototype, "fit", recorded)
    done = run(tmp_path / "run", noise, "head=prototype", "transfer=finetune", "transfer.backbone.epochs=1",
               "transfer.backbone.learning_rate=1e-3", "callbacks=none")  # fmt: skip
    assert [row["stage"] for row in table(done.directory / "history.csv")] == ["head", "backbone"]
    assert seen == [done.metrics["num_train"]], "validation images are still needed"
    kernel, _ = done.model().get_layer("head").get_weights()
    assert not np.array_equal(kernel, made[0][0])
    np.testing.assert_allclose(kernel, made[0][0], atol=0.05 * np.abs(kernel).max(), err_msg="it starts from there")
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
        (["head=linear", "head.dropout=0.5"], r"optimizer=lbfgs solves linear heads without dropout"),
        (["head=mlp", "optimizer=lbfgs"], r"optimizer=lbfgs solves linear heads without dropout"),
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
    assert compose(["head=prototype", "transfer=finetune"]).head == Prototype()
    assert compose(["head=knn", "transfer=frozen"]).head == KNN()
