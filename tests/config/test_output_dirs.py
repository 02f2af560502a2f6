"""Names of output folders: one per set of overrides, valid on every file system."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tl_research.config.output_dirs import name, sweep_dir

KEYS = st.from_regex(r"\A[+~]{0,2}(?!hydra|fresh)[a-z][a-z_]{0,12}([./@][a-z_]{1,12}){0,2}\Z")
OVERRIDES = st.lists(st.builds("{}={}".format, KEYS, st.text(max_size=120)) | KEYS, max_size=8, unique=True)
MEANINGLESS = [
    "fresh=true",
    "++fresh=false",
    "hydra.launcher.n_jobs=4",
    "hydra/launcher=basic",
    "hydra.launcher.timeout=1",
    "hydra.launcher.memory_gb=3",
    "hydra.launcher.max_failures=1",
    "hydra.sweep.dir=elsewhere",
    "hydra.verbose=true",
]


@settings(max_examples=50)
@given(OVERRIDES)
@example([])
@example(["@@@=", "seed=0"])
@example(["backbone=tiny", "data.root='/tmp/a b,c'"])
@example(["data.root=\U0001f32d\ud800", "x=\0", "y=a\nb"])
@example(["seed=" + ",".join(map(str, range(1000)))])
@example(["-m=1", "--=2"])
def test_any_overrides_give_a_portable_name(overrides: list[str]) -> None:
    found = name(overrides)
    assert 0 < len(found.encode("ascii")) <= 100
    assert Path("folder", found).parts == ("folder", found)
    assert re.fullmatch(r"[\w.=+,-]+", found, re.ASCII), found
    assert found[0] not in ".-", found


@settings(max_examples=50)
@given(OVERRIDES, st.randoms(use_true_random=False))
def test_the_order_of_overrides_does_not_matter(overrides: list[str], random: object) -> None:
    shuffled = list(overrides)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert name(shuffled) == name(overrides)


@settings(max_examples=50)
@given(OVERRIDES, OVERRIDES)
@example(["a=1", "b=2"], ["a=1,b=2"])
@example(["a=1"], ["+a=1"])
@example(["a=1"], ["a=1", "a=1"])
@example(["a=é"], ["a=è"])
@example(["a=A"], ["a=a"])
@example(["data.root=/a"], ["data.root=/b"])
@example(["x=" + 100 * "a" + "b"], ["x=" + 100 * "a" + "c"])
def test_different_overrides_have_different_names(one: list[str], other: list[str]) -> None:
    assert (name(one) == name(other)) == (sorted(one) == sorted(other))
    # On a file system that does not tell capitals from small letters, too.
    assert (name(one).lower() == name(other).lower()) == (sorted(one) == sorted(other))


@settings(max_examples=50)
@given(OVERRIDES, st.lists(st.sampled_from(MEANINGLESS)))
@example(["seed=0"], MEANINGLESS)
def test_overrides_without_effect_do_not_change_the_name(overrides: list[str], meaningless: list[str]) -> None:
    assert name([*meaningless, *overrides]) == name(overrides)


@pytest.mark.parametrize("override", ["hydra/sweeper=optuna", "monitor=val_loss", "data.fresh=1"])
def test_similar_looking_keys_change_the_name(override: str) -> None:
    assert name([override]) != name([])


def test_names_are_readable() -> None:
    found = name(["seed=0,1,2", "backbone=resnet50", "+experiment=smoke"])
    assert re.fullmatch(r"\+experiment=smoke,backbone=resnet50,seed=0-1-2-[0-9a-f]{8,}", found)


@pytest.mark.parametrize(
    "path", ["/data/photos", "'/data/my photos'", '"/data/photos"', "~/photos", "./photos", "../p"]
)
def test_paths_change_only_the_hash(path: str) -> None:
    found = name(["backbone=tiny", f"data.root={path}"])
    assert re.fullmatch(r"backbone=tiny-[0-9a-f]{8,}", found)
    assert found != name(["backbone=tiny"])


@pytest.mark.parametrize("number", [".5", ".5,.3"])
def test_a_number_without_leading_zero_is_no_path(number: str) -> None:
    assert name([f"data.val={number}"]).startswith("data.val=.5")


def test_each_command_has_folders_of_its_own() -> None:
    overrides = ["backbone=tiny", "seed=0,1"]
    assert sweep_dir("train", overrides) == Path("outputs", "sweeps", name(overrides))
    assert sweep_dir("extract", overrides) == Path("outputs", "extract", name(overrides))


def test_a_job_finds_its_folder_in_its_config() -> None:
    overrides = ["backbone=tiny", "data.root='/tmp/a b'", "seed=0"]
    config = OmegaConf.create({"subdir": "${job_dir:${task}}", "task": overrides})
    assert config.subdir == name(overrides)
