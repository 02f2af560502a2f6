"""Names of backbones in `backbone.parts` and `backbone.among`."""

from __future__ import annotations

from typing import Any

import pytest

from tl_research import InputError
from tl_research.config.backbone_options import expand_backbones


@pytest.mark.parametrize("parts", ["tiny@32+efficientnet_lite1", ["tiny@32", {"name": "efficientnet_lite1"}]])
def test_names_become_the_configurations_of_their_options(parts: Any) -> None:
    backbone = {"parts": parts, "image_size": None}
    expand_backbones(backbone)
    assert [part["name"] for part in backbone["parts"]] == ["tiny@32", "efficientnet_lite1"]
    assert [part["image_size"] for part in backbone["parts"]] == [32, 240]
    assert backbone["image_size"] == 240
    before = dict(backbone)
    expand_backbones(backbone)
    assert backbone == before


def test_weights_that_are_not_there_are_no_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    backbone: dict[str, Any] = {"among": None, "default": "efficientnet_lite0"}
    expand_backbones(backbone)
    names = [each["name"] for each in backbone["among"]]
    assert "efficientnet_lite0" in names
    assert not {"resnet50", "vit_small_patch16", "tiny"} & set(names)
    assert backbone["default"]["name"] == "efficientnet_lite0"


def test_a_number_is_no_list() -> None:
    with pytest.raises(InputError, match=r"^backbone\.among=3: give a list"):
        expand_backbones({"among": 3, "default": None})
