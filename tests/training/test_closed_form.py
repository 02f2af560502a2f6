"""Heads in closed form, from the features of all images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.training.test_logistic_regression import blobs
from tl_research.training.class_balance import UNIFORM
from tl_research.training.closed_form import solve_linear
from tl_research.training.logistic_regression import Choice, solve
from tl_research.training.optimizer import LBFGS


def test_a_known_penalty_is_that_of_train_and_val_together() -> None:
    """The head that validation images judge has not seen them, and neither has its penalty."""
    features, labels = blobs(60, 4, 3)
    rows = {"train": slice(40), "val": slice(40, 60), "both": slice(60)}
    inputs: Any = SimpleNamespace(
        learned=lambda *splits: [part[rows["both" if len(splits) > 1 else splits[0]]] for part in (features, labels)],
        plain=lambda split: (features[rows[split]], labels[rows[split]]),
        groups=lambda *_: None,
        features=SimpleNamespace(source=SimpleNamespace(widths=[4])),
        views=1,
        data=None,
    )
    trainer: Any = SimpleNamespace(balance=lambda *_: UNIFORM)
    found = solve_linear(inputs, LBFGS(), trainer, 0, Choice(l2=7.0), use_val=True)
    assert found.fitted.l2 == 7.0
    of_train = solve(features[:40], labels[:40], LBFGS(), 0)
    assert of_train.l2 != 7.0
    np.testing.assert_array_equal(found.held_out, of_train.logits(features[40:]))
