"""The rules of `experiment.rules`: combinations that are refused in one line, and their neighbours that are not."""

from __future__ import annotations

import pytest

from tl_research import InputError, compose


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head=mlp", "optimizer=lbfgs"], "optimizer=lbfgs solves linear heads .* transfer.head would train another"),
        (["transfer=finetune", "+optimizer@transfer.backbone.optimizer=lbfgs"],
         r"^transfer\.backbone\.optimizer: lbfgs solves heads, and this stage trains"),
        (["head=knn", "transfer=finetune"], "head=knn does not learn, .*; add transfer=frozen"),
        (["head=prototype", "transfer=scratch"], "the first stage of transfer has none; add head=linear"),
        (["head=knn", "trainer.class_weights=balanced"], "^trainer.class_weights counts in a loss, .*; add head="),
        (["head=prototype", "trainer.logit_adjustment=1"], "^trainer.logit_adjustment counts in a loss"),
        (["features.views=2"], "features.views: all views would be equal; add data/augment=light"),
        (["monitor=test_auroc"], "^monitor=test_auroc: test images choose nothing; give monitor=val_auroc$"),
        (["monitor=test_tta_accuracy"], "^monitor=test_tta_accuracy: test images choose nothing"),
        (["data.val=0", "optimizer=adam"], "data.val=0 leaves cv_accuracy alone .*or hold out validation images"),
        (["data.val=0", "transfer=finetune"], "data.val=0 leaves cv_accuracy alone"),
        (["data.val=0", "head=prototype"], "data.val=0 leaves cv_accuracy alone"),
        (["data.val=0", "optimizer.l2=0.1"], "data.val=0 .*give l2=null"),
        (["data.val=0", "monitor=val_loss"], "data.val=0 .*give monitor=cv_accuracy"),
        (["monitor=cv_accuracy", "optimizer=adam"], "monitor=cv_accuracy leaves cv_accuracy alone"),
        (["shard=4/4"], "shard=4/4: give a part and the number of parts"),
        (["+callbacks.other={_target_: tl_research.targets.BestWeights, monitor: val_accuracy}"],
         r"callbacks.best_weights.monitor=val_loss and callbacks.other.monitor=val_accuracy: .* one best epoch"),
        (["shard=one"], "shard=one: give a part and the number of parts"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_parts_that_exclude_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        compose(["backbone=tiny", *overrides])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["transfer=finetune", "features.views=4"], "features.views are of .* data.augment.mixup or cutmix .*=null"),
        (
            ["optimizer=adam", "features.views=2", "data/augment=none", "data.augment.mixup=1"],
            "give features.views=null",
        ),
        ([], "transfer.head would never see, .*; add optimizer=adam head=linear$"),
        (["head=knn"], "transfer.head would never see, .*; add optimizer=adam head=linear$"),
        (["transfer=finetune", "trainer.batch_size=1"], "trainer.batch_size=1 leaves .*mixup or cutmix nothing"),
        (
            ["optimizer=adam", "features.test_views=2", "data/augment=none", "data.augment.cutmix=1"],
            "views would be equal",
        ),
    ],
    ids=range(6),
)
def test_mixing_that_no_stage_would_use_is_refused(wrong: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        compose(["backbone=tiny", "data/augment=strong", *wrong])
    assert "\n" not in str(refused.value)


def test_mixing_that_a_stage_uses_is_accepted() -> None:
    for overrides in (
        ["transfer=finetune"],
        ["optimizer=adam"],
        ["transfer=scratch"],
        ["transfer=lp_ft", "features.test_views=2"],
    ):
        assert compose(["backbone=tiny", "data/augment=strong", *overrides]).data.augment.mixes


@pytest.mark.parametrize("other", ["deterministic=true", "trainer.distribution=multi_worker"])
def test_batch_size_auto_excludes_some_options(other: str) -> None:
    with pytest.raises(InputError, match=rf"trainer\.batch_size=auto .*{other}.*number"):
        compose(["backbone=tiny", "trainer.batch_size=auto", other])
    for alone in (other, "trainer.batch_size=auto"):
        compose(["backbone=tiny", alone])
