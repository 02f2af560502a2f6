"""The hyperparameters of a run as TensorBoard shows them."""

from __future__ import annotations

from tl_research import compose
from tl_research.evaluation.evaluate import hyperparameters


def test_every_swept_choice_is_a_hyperparameter() -> None:
    given = ["head=mlp", "optimizer=adam", "data/augment=light", "callbacks.early_stopping.patience=3",
             "backbone.min_size=32", "trainer.distribution=mirrored", "features.views=null",
             "transfer=finetune"]  # fmt: skip
    config = compose(given).config
    shown = hyperparameters(config, given)
    for text in given:
        key, value = text.split("=")
        assert str(shown[key]) == value
    assert shown["backbone"] == "efficientnet_lite0"
    assert "features.store" not in shown
    assert hyperparameters(config)["trainer.distribution"] == "mirrored", "a backbone has a distribution, too"
