"""A job's identity changes with whatever can change a result, and with nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_research import Run, compose
from tl_research.data.datamodule import DataModule
from tl_research.experiment.experiment import Experiment
from tl_research.runs import identity as module
from tl_research.runs.identity import Identity, changed_keys, identity

Identify = Callable[..., Identity]


@pytest.fixture(scope="module")
def options(colours: Path) -> list[str]:
    return ["backbone=tiny", "data=folder", f"data.root={colours}"]


@pytest.fixture(scope="module")
def experiment(options: list[str]) -> Experiment:
    return compose(options)


@pytest.fixture(scope="module")
def data(experiment: Experiment) -> DataModule:
    return experiment.data.load()


@pytest.fixture
def config(experiment: Experiment) -> dict[str, Any]:
    return copy.deepcopy(experiment.config)


@pytest.fixture
def identify(config: dict[str, Any], data: DataModule) -> Identify:
    """The identity of the experiment, but for the parts that are given."""
    return lambda config=config, data=data, files=(): identity(config, data, files)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"some weights")
    return path


def leaves(config: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def changed(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = ["another value", node[path[-1]]]
    return config


# Configuration


def test_every_key_counts_except_places_and_conditions(config: dict[str, Any], identify: Identify) -> None:
    before = identify()
    names = {".".join(path): identify(changed(config, path)) != before for path in leaves(config)}
    ignored = {name for name, counts in names.items() if not counts and not name.startswith("choices.")}
    # Missing weights have no content, which counts; the reaction to that need not.
    places = {"directory", "data.cache", "features.store", "features.max_gb"}
    places |= {"report._target_", "report.thumbnails", "data.check", "data.ignore"}  # they show, and change no result
    assert ignored <= {*places, "fresh", "resume", "shard", "missing_weights", "trainer.checkpoint_minutes", "verbose"}
    assert {"fresh", "verbose", "features.store", "features.max_gb"} <= ignored
    assert all(names[key] for key in ("seed", "data.root", "backbone.image_size", "callbacks.tensorboard.samples"))


def test_an_added_or_missing_key_counts(config: dict[str, Any], identify: Identify) -> None:
    others = [
        {**config, "callbacks": {}},
        {**config, "another": 1},
        {key: value for key, value in config.items() if key != "monitor"},
        # names of places count where they mean something else
        {**config, "store": "elsewhere"},
        {**config, "optimizer": {**config["optimizer"], "fresh": True}},
    ]
    assert identify() not in [identify(other) for other in others]


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(experiment: Experiment, data: DataModule, random: Any) -> None:
    def shuffled(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        keys = list(node)
        random.shuffle(keys)
        return {key: shuffled(node[key]) for key in keys}

    assert identity(shuffled(experiment.config), data, []) == identity(experiment.config, data, [])


@pytest.mark.parametrize(
    ("override", "counts"),
    [
        ("seed=1", True),
        ("head=mlp", True),
        ("backbone.weights=null", False),  # the default
        ("callbacks=none", True),
        ("threads=1", True),
        ("missing_weights=random", False),
        ("features.store=null", False),
        ("features.store=/elsewhere", False),
        ("features.max_gb=1", False),
        ("fresh=true", False),
        ("shard=0/2", False),
    ],
)
def test_overrides_count_if_they_can_change_a_number(
    identify: Identify, options: list[str], override: str, counts: bool
) -> None:
    base = [*options, "optimizer=adam", "head=linear"] if override == "head=mlp" else options
    assert (identify(compose([*base, override]).config) != identify(compose(base).config)) == counts


# Images


CHANGES: dict[str, Callable[[DataModule], DataModule]] = {
    "an image's content": lambda data: replace(data, digests=[b"\0" * 32, *data.digests[1:]]),
    "the order of images": lambda data: replace(data, digests=list(reversed(data.digests))),
    "a label": lambda data: replace(data, labels=np.array([1 - data.labels[0], *data.labels[1:]])),
    "a split": lambda data: replace(data, split_of=np.array(["test", *data.split_of[1:]])),
    "an image less": lambda data: replace(
        data, paths=data.paths[1:], digests=data.digests[1:], labels=data.labels[1:], split_of=data.split_of[1:]
    ),
    "a class name": lambda data: replace(data, class_names=["azure", *data.class_names[1:]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_images_counts(identify: Identify, data: DataModule, change: str) -> None:
    assert identify(data=CHANGES[change](data)) != identify()


def test_groups_of_images_count(identify: Identify, data: DataModule) -> None:
    """Cross-validation keeps groups together, so another grouping chooses another penalty."""
    groups = np.array(["a", "b"] * (len(data) // 2))
    one, other = replace(data, groups=groups), replace(data, groups=np.sort(groups))
    assert identify(data=one) != identify(data=other)


def test_paths_of_images_do_not_count(identify: Identify, data: DataModule) -> None:
    moved = replace(data, root=Path("/elsewhere"), paths=[Path("/elsewhere") / path.name for path in data.paths])
    assert identify(data=moved) == identify()


# Weights and versions


def test_the_content_of_weights_counts_but_not_their_path(identify: Identify, weights: Path) -> None:
    before = identify(files=[weights])
    assert before != identify()
    moved = weights.rename(weights.with_name("moved.h5"))
    assert identify(files=[moved]) == before
    moved.write_bytes(b"other weights")
    assert identify(files=[moved]) != before


def test_a_fallback_to_random_weights_counts(identify: Identify, options: list[str], weights: Path) -> None:
    def identified() -> Identity:
        experiment = compose([*options, f"backbone.weights={weights}", "missing_weights=random"])
        return identify(experiment.config, files=experiment.start.files())

    before = identified()
    weights.unlink()
    assert identified() != before


def test_files_are_told_apart_by_order_and_boundary(identify: Identify, tmp_path: Path) -> None:
    for content in ("one", "two", "onetwo"):
        (tmp_path / content).write_text(content)
    lists = (["one", "two"], ["two", "one"], ["onetwo"], ["one"], [])
    assert len({identify(files=[tmp_path / name for name in names]).weights for names in lists}) == 5


def test_versions_count(identify: Identify, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify()
    monkeypatch.setattr(module, "versions", lambda: {"version_keras": "99"})
    assert identify() != before
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert identify().differences(before) == ["code version"]


# Parts and differences


def test_each_part_is_compared_by_itself(
    config: dict[str, Any], data: DataModule, identify: Identify, weights: Path
) -> None:
    before = identify()
    others = {
        "config": identify({**config, "seed": 3}),
        "images": identify(data=CHANGES["a label"](data)),
        "weights": identify(files=[weights]),
        "code version": replace(before, code="another"),
    }
    for part, other in others.items():
        assert before.differences(other) == [part]
        assert not before.package_changes(other)
    other = replace(before, packages={**before.packages, "version_keras": "99"})
    assert before.differences(other) == []
    assert before.package_changes(other) == [f"keras {before.packages['version_keras']} -> 99"]


def test_an_identity_is_read_as_it_was_stored(identify: Identify) -> None:
    for job in (identify(), replace(identify(), opaque="a hash")):
        assert Identity.of(json.loads(json.dumps(job.as_dict()))) == job
    for other in (None, "a hash of an older version", {}, {"config": "a"}, {**identify().as_dict(), "more": 1}):
        assert Identity.of(other) is None


def test_modules_count_for_foreign_classes_only(config: dict[str, Any], identify: Identify) -> None:
    before, target = identify(), config["head"]["_target_"]
    assert target.startswith("tl_research.")
    config["head"]["_target_"] = f"tl_research.elsewhere.{target.rpartition('.')[2]}"
    config["backbone"]["build"] = "tl_research.elsewhere.tiny:Tiny"
    assert identify() == before
    config["head"]["_target_"] = "tl_research.models.head.MLP"
    assert identify().differences(before) == ["config"]
    one, other = ({**config, "head": {"_target_": f"{module}.Head"}} for module in ("mine", "yours"))
    assert identify(one) != identify(other)
    assert changed_keys(one, other) == ["head._target_"]


def test_changed_keys_are_those_that_count(config: dict[str, Any]) -> None:
    other = {**config, "seed": 3, "fresh": True, "callbacks": {}, "features": {**config["features"], "store": None}}
    keys = changed_keys(config, other)
    assert "features.store" not in keys
    assert {key.split(".")[0] for key in keys} == {"seed", "callbacks"}


# Finished jobs


@pytest.fixture
def run_job(tmp_path: Path, options: list[str]) -> Callable[..., Run]:
    short = [*options, "backbone.image_size=32", "callbacks=none"]
    return lambda *overrides: compose([*short, *overrides]).run(tmp_path / "run", "resume")


@pytest.mark.slow
def test_a_finished_job_is_kept_with_other_packages(
    run_job: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not run_job().kept
    versions = module.versions()
    monkeypatch.setattr(module, "versions", lambda: versions | {"version_keras": "99"})
    assert run_job().kept
    assert f"package versions have changed since: keras {versions['version_keras']} -> 99" in caplog.text
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert not run_job().kept


@pytest.mark.slow
def test_a_finished_job_is_kept_unless_it_has_changed(
    run_job: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_job()
    assert not first.kept
    kept = run_job("features.store=null", "features.max_gb=5")
    assert kept.kept
    assert kept.metrics["test_accuracy"] == first.metrics["test_accuracy"]
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert not run_job().kept
    assert run_job().kept
    assert not run_job("fresh=true").kept
