"""The configuration: every option composes, every wrong key, option or value is one line that helps."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tl_research import InputError, compose
from tl_research.configure.quote import quote

FILES = sorted(path for path in (ROOT / "conf").glob("*/*.yaml"))
NEEDED = {"folder": ["data.root=photos"], "kaggle": ["data.dataset=a/b"]}


def name(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_option_composes_and_begins_with_its_command(path: Path) -> None:
    assert compose([name(path), *NEEDED.get(path.stem, [])]).transfer
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]  # Hydra wants its header first
    command = re.match(r"# python train\.py ([^ ]+)", first)
    assert command
    assert command[1] == name(path)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "experiment"], ids=name)
def test_every_field_of_a_recipe_stands_in_its_yaml(path: Path) -> None:
    def check(node: object) -> None:
        if not isinstance(node, dict):
            return
        if "_target_" in node:
            fields = {f.default.alias or f.name if hasattr(f.default, "alias") else f.name
                      for f in dataclasses.fields(get_class(node["_target_"]))}  # fmt: skip
            assert set(node) - {"_target_", "defaults"} == fields
        for value in node.values():
            check(value)

    check(yaml.safe_load(path.read_text()))


def test_every_field_of_the_root_stands_in_the_config() -> None:
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    groups = {next(iter(entry)) for entry in config["defaults"] if isinstance(entry, dict)} - {"experiment"}
    given_by_us = {"config", "directory"}
    fields = {f.name for f in dataclasses.fields(get_class(config["_target_"]))} - given_by_us
    assert set(config) - {"defaults", "_target_", "hydra"} | groups == fields


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["backbone=resnet51"], ["backbone=resnet51", "backbone=resnet50"]),
        (["optimzer=adam"], ["optimzer", "optimizer"]),
        (["head.droput=0.1"], ["head.droput", "head.dropout"]),
        (["+typo=1"], ["typo", "no such key", "backbone"]),
        (["+head.typo=1"], ["head.typo", "head.dropout"]),
        (["batch_size=0"], ["batch_size", "trainer.batch_size"]),
        (["optimizer.learning_rate=-1"], ["optimizer.learning_rate=-1", "optimizer=adam", "greater than 0"]),
        (["optimizer=adam", "optimizer.learning_rate=-1"], ["optimizer.learning_rate=-1", "greater than 0"]),
        (["optimizer=adam", "optimizer.learning_rate=.nan"], ["optimizer.learning_rate"]),
        (["trainer.batch_size=0"], ["trainer.batch_size=0", "at least 1"]),
        (["transfer.head.epochs=many"], ["transfer.head.epochs=many", "whole number"]),
        (["transfer.head.epoch=3"], ["transfer.head.epoch", "transfer.head.epochs"]),
        (["transfer.backbone.epochs=3"], ["transfer=frozen", "transfer=finetune"]),
        (["transfer=finetune", "transfer.backbone.unfreeze=x"], ["transfer.backbone.unfreeze=x"]),
        (["backbone=inception_v3", "backbone.image_size=16"], ["backbone.image_size=16", "75"]),
        (["seed=a"], ["seed=a", "whole number"]),
        (["seed=-1"], ["seed=-1"]),
        (["monitor=loss"], ["monitor=loss", "val_loss"]),
        (["bn=on"], ["bn=on", "frozen"]),
        (["data.root=photos"], ["data.root=photos", "data=folder"]),
        (["data=folder"], ["data.root is needed"]),
        (["data=folder", "data.root="], ["data.root"]),
        (["head=mlp", "optimizer=lbfgs"], ["optimizer=lbfgs", "optimizer=adam"]),
        (["backbone=resnet50,vgg16"], ["backbone=resnet50,vgg16", "-m"]),
        (["seed"], ["seed"]),
        (["=1"], ["=1"]),
        (["callbacks.foo=1"], ["callbacks.foo"]),
        (["callbacks.early_stopping.patience=0"], ["callbacks.early_stopping.patience=0"]),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_helps(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compose(overrides)
    line = str(caught.value)
    assert "\n" not in line
    for word in told:
        assert word in line


def test_head_mlp_and_scratch_bring_adam_and_another_choice_wins() -> None:
    for option in ("head=mlp", "transfer=scratch"):
        assert type(compose([option]).optimizer).__name__ == "Adam"
        assert type(compose([option, "optimizer=sgd"]).optimizer).__name__ == "SGD"


def test_a_stage_takes_an_optimizer_of_its_own() -> None:
    experiment = compose(["transfer=finetune", "+optimizer@transfer.backbone.optimizer=sgd"])
    stages = {
        key: type(stage.optimizer_for(experiment.optimizer)).__name__ for key, stage in experiment.transfer.items()
    }
    assert stages == {"head": "LBFGS", "backbone": "SGD"}
    plain = compose(["transfer=finetune"])
    assert type(plain.transfer["backbone"].optimizer_for(plain.optimizer)).__name__ == "Adam"


text = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters=",$'\"[{"), min_size=1, max_size=20)


@settings(deadline=None, max_examples=150)
@given(
    text.filter(lambda value: "${" not in value and value[0] not in "'\"[{" and value.lower() not in ("null", "true"))
)
def test_hydra_reads_a_quoted_value_as_it_was_typed(value: str) -> None:
    override = OverridesParser.create().parse_override(quote(f"data.root={value}"))
    read = override.value()
    assert str(read) == value or not isinstance(read, str)  # numbers and lists are Hydra's own


@pytest.mark.parametrize(
    "value",
    ["/tmp/é", "/tmp/热狗", "/tmp/a=b", "/tmp/hot-dog_(1)", "it's", "a b", "x: y", "50%", "a\\b\\", "/x'y\"z", "2024"],
)
def test_folder_names_as_people_have_them(value: str) -> None:
    assert compose(["data=folder", f"data.root={value}"]).config["data"]["root"] == str(Path(value).absolute())


def test_a_tilde_is_the_home() -> None:
    assert compose(["data=folder", "data.root=~/x"]).config["data"]["root"] == str(Path.home() / "x")


def test_in_a_sweep_commas_separate_what_is_quoted() -> None:
    assert quote("data.root=~/x,~/y", sweep=True) == "data.root='~/x','~/y'"
    assert quote("seed=0,1", sweep=True) == "seed=0,1"


def test_what_is_composed_is_recorded_and_one_does_not_influence_the_next() -> None:
    first = compose(["seed=3", "backbone=tiny"])
    second = compose([])
    assert (first.seed, second.seed) == (3, 0)
    assert first.config["choices"]["backbone"] == "tiny"
    assert second.config["choices"]["backbone"] == "efficientnet_lite0"
    assert first.config["data"]["split_seed"] == 3


def test_a_hydra_that_is_running_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose([])
        assert GlobalHydra.instance().hydra is outer


def test_a_folder_of_the_users_goes_before_ours(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "resnet101.yaml").write_text(
        "defaults: [resnet50]\nname: resnet101\napplication: ResNet101\n"
    )
    assert compose(["backbone=resnet101"], config_dir=tmp_path).backbone.name == "resnet101"
    with pytest.raises(InputError, match="no such folder"):
        compose([], config_dir=tmp_path / "nowhere")


def test_composing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from tl_research import compose; compose(['transfer=finetune']).config\n"
        "print({'tensorflow', 'keras', 'sklearn', 'scipy', 'matplotlib', 'h5py', 'openvino'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
