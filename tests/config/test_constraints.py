"""Descriptions of valid values, and suggestions of near names."""

from __future__ import annotations

import pytest

from tl_research.config.constraints import allowed, shown
from tl_research.config.suggestions import near
from tl_research.data.sources import Folder
from tl_research.training.optimizer import SGD
from tl_research.training.options import TrainOptions
from tl_research.training.stage import Stage


@pytest.mark.parametrize(
    ("recipe", "field", "words"),
    [
        (Stage, "epochs", "a whole number of at least 1"),
        (Stage, "unfreeze", "a whole number of at least 0 or 'all'"),
        (Stage, "learning_rate", "a number greater than 0 or null"),
        (Stage, "random_weights", "true or false"),
        (SGD, "momentum", "a number of at least 0 and less than 1"),
        (Folder, "root", "text that is not empty"),
        (Folder, "resize", "'squash', 'crop' or 'pad'"),
        (Folder, "split_seed", "a whole number of at least 0 and less than 4294967296"),
        (TrainOptions, "class_weights", "'balanced' or {NAME: a number greater than 0} or null"),
        (Stage, "optimizer", None),
        (Stage, "nothing", None),
        (int, "real", None),
    ],
)
def test_the_range_of_a_field_comes_from_its_type(recipe: type, field: str, words: str | None) -> None:
    assert allowed(recipe, field) == words


@pytest.mark.parametrize(("value", "typed"), [(None, "null"), (True, "true"), (False, "false"), (0, "0"), ("x", "x")])
def test_values_are_shown_as_they_are_typed(value: object, typed: str) -> None:
    assert shown(value) == typed


def test_near_names_come_first_and_few_names_all() -> None:
    assert near("head.droput", ["head.units", "head.dropout"]) == (
        "nearest: head.dropout; there are head.dropout, head.units"
    )
    assert near("batch_size", [f"a{i}" for i in range(30)] + ["trainer.batch_size"]) == "nearest: trainer.batch_size"
    both = ["transfer.backbone.epochs", "transfer.head.epochs"]
    assert near("epochs", both) == f"nearest: {', '.join(both)}; there are {', '.join(both)}"
    assert near("x", ["linear", "mlp"], "head") == "there are linear, mlp"
    assert near("resnet51", ["resnet50", "vgg16"], "backbone").startswith("nearest: backbone=resnet50;")
    assert near("zzz", [f"name{i}" for i in range(30)]) == "nothing is near"
