"""The jobs of a sweep: every combination, each key where there is one."""

from __future__ import annotations

import pytest
from hydra.types import RunMode

from tl_research import InputError
from tl_research.config.compose import hydra
from tl_research.config.compose_errors import compose_config
from tl_research.config.grid import grid_jobs, spread


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


def test_a_key_counts_for_the_options_that_have_it_and_equal_jobs_are_one() -> None:
    assert jobs_of("transfer=frozen,finetune", "transfer.backbone.epochs=1,3", "seed=7") == [
        ["transfer=frozen", "seed=7"],
        ["transfer=finetune", "transfer.backbone.epochs=1", "seed=7"],
        ["transfer=finetune", "transfer.backbone.epochs=3", "seed=7"],
    ]


def test_the_sweeper_s_own_params_are_swept_too_and_the_command_line_wins() -> None:
    params = 'hydra.sweeper.params={seed: "0,1", head: linear}'
    assert jobs_of(params) == [["seed=0", "head=linear"], ["seed=1", "head=linear"]]
    assert jobs_of(params, "seed=7") == [["head=linear", "seed=7"]]


def test_a_key_that_is_nowhere_stays_to_be_told() -> None:
    assert ["transfer=frozen", "transfer.bakbone.epochs=1"] in jobs_of(
        "transfer=frozen,finetune", "transfer.bakbone.epochs=1"
    )


def test_without_a_swept_group_a_key_that_is_not_there_is_told() -> None:
    assert jobs_of("transfer=frozen", "transfer.backbone.epochs=1,2") == [
        ["transfer=frozen", "transfer.backbone.epochs=1"],
        ["transfer=frozen", "transfer.backbone.epochs=2"],
    ]


def test_options_that_do_not_go_together_are_told_when_the_job_is_composed() -> None:
    assert ["backbone=nothing", "seed=0"] in jobs_of("backbone=tiny,nothing", "seed=0")
    with hydra() as composer, pytest.raises(InputError, match="backbone=nothing"):
        compose_config(composer, ["backbone=nothing"])


def test_one_value_for_a_key_that_only_some_have_is_no_mistake() -> None:
    assert jobs_of("transfer=frozen,finetune", "transfer.backbone.epochs=3") == [
        ["transfer=frozen"],
        ["transfer=finetune", "transfer.backbone.epochs=3"],
    ]


@pytest.mark.parametrize("added", ["+data.extra=1", "~callbacks.tensorboard=null"])
def test_what_a_job_adds_or_takes_away_stays(added: str) -> None:
    assert jobs_of("head=linear,knn", added) == [["head=linear", added], ["head=knn", added]]
