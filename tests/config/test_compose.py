"""The configuration: every option composes; every wrong key, option or value is a helpful line. Covers compose,
compose_errors, constraints, suggestions and hydra_internals."""

from __future__ import annotations

import dataclasses
import inspect
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tl_research import InputError, compose
from tl_research.config.compose import hydra
from tl_research.config.compose_errors import compose_config

CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)


def group(path: Path) -> str:
    return path.parent.relative_to(CONF).as_posix()


def recipe(target: str) -> type:
    """The recipe that a `_target_` is or, being a plugin of Hydra's, has. Skips where its extra is not installed."""
    try:
        found = get_class(target)
    except ImportError:
        pytest.skip(f"{target} needs an extra: ray, slurm")
    return getattr(found, "recipe", found)


def name(path: Path) -> str:
    return f"{group(path)}={path.stem}"


def nodes(content: Any) -> Iterator[dict[str, Any]]:
    """All mappings with a `_target_`."""
    if isinstance(content, dict):
        yield from [content] if "_target_" in content else []
        for value in content.values():
            yield from nodes(value)


@pytest.mark.parametrize("path", [ROOT / "conf" / "config.yaml", *FILES], ids=name)
def test_each_options_command_composes(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    command = re.fullmatch(r"# python train\.py (.*?)(\s{2,}\(.*\))?", lines[0])
    assert command or lines[0][0] != "#", lines[0]
    words = command[1] if command else " ".join([name(path), *re.findall(r"# add (.*?): ", lines[0])])
    overrides = re.sub(r"(^| )\[.*?\]", "", words).removeprefix("-m ").split()
    experiment = compose(overrides)
    assert experiment.transfer
    if path in FILES:
        assert name(path) in overrides
        assert experiment.config["choices"].get(group(path), path.stem) == path.stem


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name not in ("experiment", "hparams")], ids=name)
def test_every_field_of_a_recipe_is_a_key_of_its_option(path: Path) -> None:
    with hydra() as composer:
        config: Any = OmegaConf.to_container(compose_config(composer, [name(path)]))
    for node in nodes(reduce(getitem, group(path).split("/"), config)):
        assert set(node) - {"_target_"} == set(inspect.signature(recipe(node["_target_"])).parameters)


# Folders in the user's home; the run's seed, which is equal; the name of a backbone, which composing makes one.
DIFFERENT = {"store", "cache", "split_seed", "default"}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=name)
def test_defaults_are_equal_in_conf_and_code(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    if path.stem in ("images", "network"):
        content["_target_"] = f"tl_research.targets.{'Folder' if path.stem == 'images' else 'Custom'}"
    for node in nodes(content):
        parameters = inspect.signature(recipe(node["_target_"])).parameters
        defaults = {
            key: list(p.default) if isinstance(p.default, tuple) else p.default
            for key, p in parameters.items()
            if p.default is not p.empty and key not in DIFFERENT
        }
        both = {key for key in defaults if node.get(key, "???") != "???" and not isinstance(node[key], dict)}
        assert {key: node[key] for key in both} == {key: defaults[key] for key in both}


def test_what_options_extend_is_no_option() -> None:
    extended = {path.stem for path in CONF.glob("*.yaml")}
    with hydra() as composer:
        for option_group in {group(path) for path in FILES}:
            assert not extended & set(composer.config_loader.get_group_options(option_group))
        assert not extended & set(composer.config_loader.list_groups(""))
    with pytest.raises(InputError, match="transfer=stage: there is no such option; there are bias_only, bn_only"):
        compose(["transfer=stage"])


def test_every_field_of_the_root_stands_in_the_config() -> None:
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    groups = {next(iter(entry)) for entry in config["defaults"] if isinstance(entry, dict)}
    groups = {found for found in groups if "/" not in found} - {"experiment", "hparams"}
    given_by_us = {"config", "directory"}
    fields = {f.name for f in dataclasses.fields(get_class(config["_target_"]))} - given_by_us
    assert set(config) - {"defaults", "_target_", "hydra"} | groups == fields


@pytest.mark.parametrize(
    ("overrides", "words"),
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
        (["head=null"], ["head=null: there is no such option", "linear, mlp"]),
        (["data=folders"], ["nearest: data=folder"]),
        (["experiment=smoky"], ["nearest: experiment=smoke"]),
        (["data.rot=photos"], ["data.rot: there is no such key; nearest: data.root, of data=folder"]),
        (["backbone=list"], ["backbone=list: there is no such option; there are ", "resnet50", "efficientnet_lite0"]),
        (["hydra.sweeper.n_trials=3"], ["add hydra/sweeper=optuna"]),
        (["hydra.run.dri=x"], ["nearest: hydra.run.dir"]),
        (["hydra.run.dir=null"], ["hydra.run.dir=null", "not Optional"]),
        (["~nothing"], ["nothing: there is no such key"]),
        (["~head"], ["head is needed"]),
        (["++typo.deep=1"], ["typo: there is no such key"]),
        (["+trainer.batchsize=3"], ["nearest: trainer.batch_size"]),
        (["trainer.batch_size=1.5"], ["trainer.batch_size=1.5: should be a whole number of at least 1"]),
        (["trainer.batch_size=null"], ["trainer.batch_size=null: should be a whole number of at least 1"]),
        (["trainer=big"], ["trainer=big", "TrainOptions"]),
        (["backbone=tiny", "backbone.image_size=big"], ["backbone.image_size=big: should be a whole number"]),
        (["backbone.pooling=sum"], ["backbone.pooling=sum: should be 'avg' or 'max'"]),
        (["head.dropout=1"], ["head.dropout=1: should be a number of at least 0 and less than 1"]),
        (["head.dropout=0.5"], ["optimizer=lbfgs", "add optimizer=adam"]),
        (["optimizer.l2=-1"], ["optimizer.l2=-1: should be a number greater than 0 or null"]),
        (["threads=0"], ["threads=0: should be a whole number of at least 1 or null"]),
        (["deterministic=maybe"], ["deterministic=maybe: should be true or false"]),
        (["data.max_bad=5"], ["data.max_bad=5: should be a number of at least 0 and less than 1"]),
        (["data.resize=stretch"], ["data.resize=stretch: should be 'squash', 'crop' or 'pad'"]),
        (["data.split_seed=x"], ["data.split_seed=x"]),
        (["data=kaggle"], ["data.dataset is needed"]),
        (["seed=${nothing}"], ["seed: ", "'nothing' not found"]),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_helps(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compose(overrides)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_head_mlp_and_scratch_bring_adam_and_another_choice_wins() -> None:
    for option in ("head=mlp", "transfer=scratch"):
        assert type(compose([option]).optimizer).__name__ == "Adam"
        assert type(compose([option, "optimizer=sgd"]).optimizer).__name__ == "SGD"


def test_a_stage_takes_an_optimizer_of_its_own() -> None:
    experiment = compose(["transfer=finetune", "+optimizer@transfer.backbone.optimizer=sgd"])
    stages = {key: type(stage.optimizer_for(experiment.optimizer)).__name__ for key, stage in experiment.stages.items()}
    assert stages == {"head": "LBFGS", "backbone": "SGD"}
    plain = compose(["transfer=finetune"])
    assert type(plain.stages["backbone"].optimizer_for(plain.optimizer)).__name__ == "Adam"


def test_compositions_are_recorded_and_independent() -> None:
    first = compose(["seed=3", "backbone=tiny"])
    second = compose([])
    assert (first.seed, second.seed) == (3, 0)
    assert first.config["choices"]["backbone"] == "tiny"
    assert second.config["choices"]["backbone"] == "efficientnet_lite0"
    assert first.config["data"]["split_seed"] == 3


def test_a_running_hydra_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose([])
        assert GlobalHydra.instance().hydra is outer


def test_the_users_folder_is_searched_first(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "resnet101.yaml").write_text(
        "defaults: [resnet50]\nname: resnet101\napplication: ResNet101\n"
    )
    assert compose(["backbone=resnet101"], config_dir=tmp_path).backbone.name == "resnet101"
    with pytest.raises(InputError, match="no such folder"):
        compose([], config_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os.system", "head: Target 'os.system' is refused: it could run any command"),
        ("my_heads.Cosine", r"head\._target_: .*my_heads\.py, line 2: "),
        (
            "their_heads.Cosine",
            r"head\._target_: the module raises ModuleNotFoundError: No module named 'nothing_of_it'",
        ),
        ("no_such_module.Cosine", r"head\._target_: .*no_such_module"),
    ],
)
def test_a_target_that_cannot_be_had_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "cosine.yaml").write_text(f"_target_: {target}\n")
    (tmp_path / "my_heads.py").write_text("\nclass Cosine(:\n")
    (tmp_path / "their_heads.py").write_text("import nothing_of_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=words):
        compose(["head=cosine"], config_dir=tmp_path)


def test_composing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from tl_research import compose; compose(['transfer=finetune']).config\n"
        "print({'tensorflow', 'keras', 'sklearn', 'scipy', 'matplotlib', 'h5py', 'openvino'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_bad_input_is_reported_before_tensorflow_is_imported(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: the clock is others' as well
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "head.droput=0.1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert result.returncode == 2
    assert "head.dropout" in result.stderr.splitlines()[-1]
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "tl_research.config" in imported
    assert not imported & {"tensorflow", "keras"}


def test_an_interpolated_value_is_reported_under_its_source() -> None:
    for override in ("seed=x", "data.split_seed=x"):
        with pytest.raises(InputError) as caught:
            compose([override])
        assert str(caught.value).startswith(f"{override}: ")


def test_a_root_without_the_folder_source_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data=hot_dog_demo has no root; add data=folder, which has it"):
        compose(["data.root=photos"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("data.root", "data=folder"),
        ("data.archive", "data=hot_dog"),
        ("data.cache", "data=hot_dog_demo"),
        ("backbone.weights", "backbone=tiny"),
    ],
)
def test_relative_paths_become_absolute(key: str, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = compose([group, f"{key}=some/where.h5"])
    part, field = key.split(".")
    assert experiment.config[part][field] == str(tmp_path / "some" / "where.h5")
    assert getattr(getattr(experiment, part), field) == str(tmp_path / "some" / "where.h5")


def test_weights_that_are_no_path_stay_as_they_are() -> None:
    assert compose(["backbone=resnet50"]).backbone.weights == "imagenet"
    assert compose(["backbone=resnet50", "backbone.weights=null"]).backbone.weights is None


def test_the_defaults_are_those_of_the_issue() -> None:
    assert compose().config["choices"] == {
        "backbone": "efficientnet_lite0",
        "head": "linear",
        "data": "hot_dog_demo",
        "optimizer": "lbfgs",
        "transfer": "frozen",
        "callbacks": "default",
    }


def test_the_command_line_wins_over_an_experiment() -> None:
    tutorial = compose(["experiment=hot_dog_tutorial"])
    assert tutorial.config["choices"]["backbone"] == "resnet50"
    assert tutorial.backbone.image_size == 512
    assert tutorial.transfer["head"].epochs == 5
    changed = compose(["experiment=hot_dog_tutorial", "backbone=mobilenet_v2", "transfer.head.epochs=7"])
    assert changed.config["choices"]["backbone"] == "mobilenet_v2"
    assert changed.transfer["head"].epochs == 7


def test_the_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", "/somewhere/else")
    assert compose().config["data"]["cache"] == "/somewhere/else"
    monkeypatch.delenv("TL_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert compose().config["data"]["cache"] == "/home/me/.cache/tl_research"


def test_the_config_holds_plain_values_without_hydras_own() -> None:
    config = compose(["transfer=finetune"]).config
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert "hydra" not in config
    assert not GlobalHydra.instance().is_initialized()
