"""A plan divides the backbone into a frozen and an unfrozen part."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.models.test_backbone import recipe
from tl_research.models.classifier import build_classifier
from tl_research.models.head import Linear
from tl_research.models.trainable_plan import resolve_plan


@pytest.mark.parametrize(("unfreeze", "unfrozen"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3), ("all", 3)])
def test_prefix_is_frozen_and_tail_learns(unfreeze: int | Literal["all"], unfrozen: int) -> None:
    backbone = recipe("tiny", image_size=32).build()
    plan = resolve_plan(build_classifier(backbone, Linear().build(32, 2)), unfreeze)
    assert plan.num_unfrozen == unfrozen
    assert (plan.prefix is None) == (unfrozen == 3)
    assert (plan.tail is None) == (unfrozen == 0)
    frozen = [] if plan.prefix is None else plan.prefix.trainable_variables
    learning = [] if plan.tail is None else plan.tail.trainable_variables
    assert frozen == []
    assert {v.path for v in plan.learning} == {v.path for v in [*learning, *plan.head.trainable_variables]}
