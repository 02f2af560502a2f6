"""Whatever can change a number changes a job's identity, and nothing else does."""

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


@pytest.fixture(scope="module")
def experiment(colours: Path) -> Experiment:
    return compose(["backbone=tiny", "data=folder", f"data.root={colours}"])


@pytest.fixture(scope="module")
def data(experiment: Experiment) -> DataModule:
    return experiment.data.load()


@pytest.fixture
def config(experiment: Experiment) -> dict[str, Any]:
    return copy.deepcopy(experiment.config)


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


# What is asked for


def test_every_value_counts_but_those_that_only_say_where_things_go(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    without = {path for path in leaves(config) if identity(changed(config, path), data, []) == before}
    named = {".".join(path) for path in without if path[0] != "choices"}
    # Weights that are missing have no content, which counts; what is to be done about it need not.
    places = {"directory", "data.cache", "features.store", "features.max_gb"}
    assert named <= {*places, "fresh", "resume", "shard", "missing_weights", "trainer.checkpoint_minutes", "verbose"}
    assert {"fresh", "verbose", "features.store", "features.max_gb"} <= named
    assert {"seed", "data.root", "backbone.image_size", "callbacks.tensorboard.samples"} <= {
        ".".join(path) for path in leaves(config)
    } - named


def test_a_key_more_or_less_counts(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    assert identity({**config, "callbacks": {}}, data, []) != before
    assert identity({**config, "another": 1}, data, []) != before
    assert identity({k: v for k, v in config.items() if k != "monitor"}, data, []) != before


def test_a_key_is_left_out_only_where_it_stands_for_a_place(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    assert identity({**config, "store": "elsewhere"}, data, []) != before
    assert identity({**config, "optimizer": {**config["optimizer"], "fresh": True}}, data, []) != before


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
        ("backbone.weights=null", False),  # which it is already
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
def test_overrides_count_where_they_could_change_a_number(
    experiment: Experiment, data: DataModule, colours: Path, override: str, counts: bool
) -> None:
    overrides = ["head=linear"] if override.startswith("head") else []
    other = compose(["backbone=tiny", "data=folder", f"data.root={colours}", *overrides, *_needed(override), override])
    mine = compose(["backbone=tiny", "data=folder", f"data.root={colours}", *overrides, *_needed(override)])
    assert (identity(other.config, data, []) != identity(mine.config, data, [])) == counts


def _needed(override: str) -> list[str]:
    return ["optimizer=adam"] if override == "head=mlp" else []


# The images


CHANGES: dict[str, Callable[[DataModule], DataModule]] = {
    "an image's content": lambda data: replace(data, digests=[b"\0" * 32, *data.digests[1:]]),
    "the order of images": lambda data: replace(data, digests=list(reversed(data.digests))),
    "a label": lambda data: replace(data, labels=np.array([1 - data.labels[0], *data.labels[1:]])),
    "a split": lambda data: replace(data, split_of=np.array(["test", *data.split_of[1:]])),
    "an image less": lambda data: replace(
        data, digests=data.digests[1:], labels=data.labels[1:], split_of=data.split_of[1:]
    ),
    "a class name": lambda data: replace(data, class_names=["azure", *data.class_names[1:]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_changes_with(config: dict[str, Any], data: DataModule, change: str) -> None:
    assert identity(config, CHANGES[change](data), []) != identity(config, data, [])


def test_which_group_an_image_is_of_counts(config: dict[str, Any], data: DataModule) -> None:
    """Cross-validation keeps groups together, so another grouping chooses another penalty."""
    groups = np.array(["a", "b"] * (len(data) // 2))
    one, other = replace(data, groups=groups), replace(data, groups=np.sort(groups))
    assert identity(config, one, []) != identity(config, other, [])


def test_where_images_lie_and_what_was_set_aside_does_not_count(config: dict[str, Any], data: DataModule) -> None:
    moved = replace(data, root=Path("/elsewhere"), paths=[Path("/elsewhere") / path.name for path in data.paths])
    assert identity(config, moved, []) == identity(config, data, [])


# Weights and versions


def test_it_changes_with_the_content_of_weights_and_not_with_their_place(
    config: dict[str, Any], data: DataModule, weights: Path
) -> None:
    before = identity(config, data, [weights])
    assert before != identity(config, data, [])
    moved = weights.rename(weights.with_name("moved.h5"))
    assert identity(config, data, [moved]) == before
    moved.write_bytes(b"other weights")
    assert identity(config, data, [moved]) != before


def test_random_weights_for_want_of_others_are_another_job(data: DataModule, colours: Path, weights: Path) -> None:
    def asked() -> Identity:
        options = ["backbone=tiny", f"backbone.weights={weights}", "missing_weights=random"]
        experiment = compose([*options, "data=folder", f"data.root={colours}"])
        return identity(experiment.config, data, experiment.start.files())

    there = asked()
    weights.unlink()
    assert asked() != there


def test_two_files_are_not_one_of_both_contents(config: dict[str, Any], data: DataModule, tmp_path: Path) -> None:
    def named(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    a, b = named("a", b"one"), named("b", b"two")
    found = [identity(config, data, files) for files in ([a, b], [b, a], [named("c", b"onetwo")], [a], [])]
    assert len({each.weights for each in found}) == 5


def test_it_changes_with_a_version(config: dict[str, Any], data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(config, data, [])
    monkeypatch.setattr(module, "versions", lambda: {"version_keras": "99"})
    assert identity(config, data, []) != before
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert identity(config, data, []).differences(before) == ["code version"]


# The parts and how they differ


def test_each_part_stands_for_itself(config: dict[str, Any], data: DataModule, weights: Path) -> None:
    before = identity(config, data, [])
    others = {
        "config": identity({**config, "seed": 3}, data, []),
        "images": identity(config, CHANGES["a label"](data), []),
        "weights": identity(config, data, [weights]),
        "code version": replace(before, code="another"),
    }
    for part, other in others.items():
        assert before.differences(other) == [part]
        assert not before.package_changes(other)
    packages = {**before.packages, "version_keras": "99"}
    other = replace(before, packages=packages)
    assert before.differences(other) == []
    assert before.package_changes(other) == [f"keras {before.packages['version_keras']} -> 99"]


def test_it_is_read_back_as_it_was_stored(config: dict[str, Any], data: DataModule) -> None:
    found = identity(config, data, [])
    for each in (found, replace(found, opaque="a hash")):
        assert Identity.of(json.loads(json.dumps(each.as_dict()))) == each
    for other in (None, "a hash of an older version", {}, {"config": "a"}, {**found.as_dict(), "more": 1}):
        assert Identity.of(other) is None


def test_our_classes_may_move_to_other_modules(config: dict[str, Any], data: DataModule) -> None:
    before = identity(config, data, [])
    assert config["head"]["_target_"].startswith("tl_research.")
    config["head"]["_target_"] = f"tl_research.elsewhere.{config['head']['_target_'].rpartition('.')[2]}"
    config["backbone"]["build"] = "tl_research.elsewhere.tiny:Tiny"
    assert identity(config, data, []) == before
    config["head"]["_target_"] = "tl_research.models.head.MLP"
    assert identity(config, data, []).differences(before) == ["config"]


def test_a_class_of_the_user_s_counts_with_its_module(config: dict[str, Any], data: DataModule) -> None:
    one, other = ({**config, "head": {"_target_": f"{module}.Head"}} for module in ("mine", "yours"))
    assert identity(one, data, []) != identity(other, data, [])
    assert changed_keys(one, other) == ["head._target_"]


def test_changed_keys_are_those_that_make_another_job(config: dict[str, Any]) -> None:
    other = {**config, "seed": 3, "fresh": True, "callbacks": {}, "features": {**config["features"], "store": None}}
    found = changed_keys(config, other)
    assert "seed" in found
    assert "fresh" not in found
    assert "features.store" not in found
    assert {key.split(".")[0] for key in found} == {"seed", "callbacks"}


# What it is for


def test_a_job_that_is_done_is_kept_with_other_packages(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asked() -> Run:
        options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}", "callbacks=none"]
        return compose(options).run(tmp_path / "run", "resume")

    assert not asked().kept
    found = module.versions()
    monkeypatch.setattr(module, "versions", lambda: found | {"version_keras": "99"})
    assert asked().kept
    assert f"package versions have changed since: keras {found['version_keras']} -> 99" in caplog.text
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert not asked().kept


@pytest.mark.slow
def test_a_job_that_is_done_is_kept_and_one_that_is_another_is_not(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*overrides: str) -> Run:
        options = ["backbone=tiny", "backbone.image_size=32", "data=folder", f"data.root={colours}", "callbacks=none"]
        return compose([*options, *overrides]).run(tmp_path / "run", "resume")

    first = asked()
    assert not first.kept
    kept = asked("features.store=null", f"features.max_gb={5}")
    assert kept.kept
    assert kept.metrics["test_accuracy"] == first.metrics["test_accuracy"]
    monkeypatch.setattr(module, "CODE_VERSION", "another")
    assert not asked().kept
    assert asked().kept
    assert not asked("fresh=true").kept
