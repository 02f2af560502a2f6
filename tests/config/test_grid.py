"""The jobs of a sweep: every combination, each key only where it exists."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from hydra.types import RunMode

from tl_research import InputError
from tl_research.config.compose import hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.grid import grid_jobs, spread
from tl_research.config.preflight import check_jobs


def jobs_of(*overrides: str) -> list[list[str]]:
    with hydra() as composer:
        given = spread(composer, overrides, "config")
        return grid_jobs(composer, compose_config(composer, given, mode=RunMode.MULTIRUN))


def test_every_combination_is_a_job() -> None:
    assert jobs_of("seed=0,1", "head=linear,knn") == [
        ["seed=0", "head=linear"],
        ["seed=0", "head=knn"],
        ["seed=1", "head=linear"],
        ["seed=1", "head=knn"],
    ]


def test_a_key_applies_only_to_options_that_have_it() -> None:
    assert jobs_of("transfer=frozen,finetune", "transfer.backbone.epochs=1,3", "seed=7") == [
        ["transfer=frozen", "seed=7"],
        ["transfer=finetune", "transfer.backbone.epochs=1", "seed=7"],
        ["transfer=finetune", "transfer.backbone.epochs=3", "seed=7"],
    ]


def test_the_command_line_wins_over_sweeper_params() -> None:
    params = 'hydra.sweeper.params={seed: "0,1", head: linear}'
    assert jobs_of(params) == [["seed=0", "head=linear"], ["seed=1", "head=linear"]]
    assert jobs_of(params, "seed=7") == [["head=linear", "seed=7"]]


def test_an_unknown_key_stays_in_all_jobs() -> None:
    assert ["transfer=frozen", "transfer.bakbone.epochs=1"] in jobs_of(
        "transfer=frozen,finetune", "transfer.bakbone.epochs=1"
    )


def test_without_a_swept_group_an_absent_key_is_refused() -> None:
    assert jobs_of("transfer=frozen", "transfer.backbone.epochs=1,2") == [
        ["transfer=frozen", "transfer.backbone.epochs=1"],
        ["transfer=frozen", "transfer.backbone.epochs=2"],
    ]


def test_incompatible_options_stay_for_composing_to_refuse() -> None:
    assert ["backbone=nothing", "seed=0"] in jobs_of("backbone=tiny,nothing", "seed=0")
    with hydra() as composer, pytest.raises(InputError, match="backbone=nothing"):
        compose_config(composer, ["backbone=nothing"])


@pytest.mark.parametrize("value", ["epochs=3", "learning_rate=null"])
def test_a_single_value_may_apply_to_some_options_only(value: str) -> None:
    assert jobs_of("transfer=frozen,finetune", f"transfer.backbone.{value}") == [
        ["transfer=frozen"],
        ["transfer=finetune", f"transfer.backbone.{value}"],
    ]


@pytest.mark.parametrize("added", ["+data.extra=1", "~callbacks.tensorboard=null"])
def test_added_and_deleted_keys_stay_in_all_jobs(added: str) -> None:
    assert jobs_of("head=linear,knn", added) == [["head=linear", added], ["head=knn", added]]


@pytest.mark.parametrize(
    ("swept", "remaining"),
    [
        (["head=linear,knn", "transfer=frozen,finetune"], 3),
        (["head=knn", "transfer=frozen,finetune"], 1),
        (["data.folds=2,4", "data.fold=1,3"], 3),
    ],
)
def test_impossible_combinations_are_left_out(
    colours: Path, caplog: pytest.LogCaptureFixture, swept: list[str], remaining: int
) -> None:
    job = ["backbone=tiny", "backbone.weights=null", "data=folder", f"data.root={colours}"]
    options = Namespace(
        overrides=[*job, *swept, "seed=0,1"], config_name=None, config_dir=None, multirun=True, cfg=None
    )
    check_jobs("train", options)
    assert len(jobs_of(*options.overrides)) == 2 * remaining
    (line,) = caplog.messages
    assert line.startswith("left out: ")
    assert "(2 job(s)): " in line


@pytest.mark.parametrize(
    "swept", [["head=knn", "transfer=finetune,lp_ft"], ["head=linear,knn", "transfer=finetune,fintune"]]
)
def test_a_sweep_without_possible_jobs_or_with_a_typo_is_refused(colours: Path, swept: list[str]) -> None:
    job = ["backbone=tiny", "backbone.weights=null", "data=folder", f"data.root={colours}"]
    options = Namespace(overrides=[*job, *swept], config_name=None, config_dir=None, multirun=True, cfg=None)
    with pytest.raises(InputError, match=r"head=knn does not learn|transfer=fintune: there is no such option"):
        check_jobs("train", options)
