"""The licence of pretrained weights: known or null, and no path of the machine that trained."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ROOT
from tl_research import compose
from tl_research.models.weights.licences import describe_weights

SEVERAL = {"auto", "combined"}
NETWORKS = sorted({path.stem for path in (ROOT / "conf" / "backbone").glob("*.yaml")} - SEVERAL)


@pytest.mark.parametrize("name", NETWORKS)
def test_imagenet_weights_have_a_licence(name: str) -> None:
    backbone = compose([f"backbone={name}", *(["backbone.weights=x.keras"] if name == "saved" else [])]).config[
        "backbone"
    ]
    assert (describe_weights(backbone)["licence"] is not None) == (backbone["weights"] == "imagenet")


def test_several_networks_have_the_licences_of_all() -> None:
    lite = {"name": "a", "weights": "imagenet", "variant": 0}
    other = {"name": "b", "weights": "imagenet", "application": "ResNet50"}
    said = describe_weights({"parts": [lite, other], "weights": "parts"})
    assert said == {"backbone": "a + b", "weights": "imagenet", "licence": "Apache-2.0 + MIT"}
    tiny = {"name": "c", "weights": None}
    said = describe_weights({"parts": [lite, tiny], "weights": "parts"})
    assert said == {"backbone": "a + c", "weights": "imagenet + random", "licence": "Apache-2.0"}
    assert describe_weights({"name": "d", "parts": [tiny, tiny], "weights": "parts"})["weights"] is None
    assert describe_weights({"chosen": lite, "name": "auto"})["licence"] == "Apache-2.0"


@pytest.mark.parametrize(("weights", "said"), [(None, None), ("/home/me/best.keras", "best.keras")])
def test_other_weights_are_named_without_their_folder(weights: Any, said: Any) -> None:
    assert describe_weights({"name": "tiny", "weights": weights}) == {
        "backbone": "tiny", "weights": said, "licence": None,
    }  # fmt: skip
