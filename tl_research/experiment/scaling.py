"""Find out whether a network that does not scale its images wants pixels of 0 to 255 or of 0 to 1."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from tl_research.features.table import FeatureTable
from tl_research.models.backbone import Saved
from tl_research.system.console import silenced
from tl_research.training.logistic_regression import solve
from tl_research.training.optimizer import LBFGS

log = logging.getLogger(__name__)

MOST_IMAGES = 500


def compare_scaling(backbone: Saved, table: FeatureTable, seed: int) -> dict[str, float]:
    """Warn with the cross-validated log losses of a linear head on features of pixels of 0 to 255 (`none`), as `table`
    computes them, and of 0 to 1 (`unit`), for up to 500 training images. Return them; empty if there are too few images
    to hold some out."""
    train = table.data.indices("train")
    chosen = np.sort(np.random.default_rng(seed).permutation(train)[:MOST_IMAGES])
    labels = np.asarray(table.data.labels)[chosen]
    groups = table.data.kept_together(chosen)
    with silenced():
        unit = replace(backbone, preprocessing="unit").build(keep_session=True)
    losses = {}
    for how, network in (("none", table.network), ("unit", unit)):
        features = replace(table, network=network, computed=0, hit=0).get(chosen)
        tried = solve(features, labels, LBFGS(), seed, groups=groups).log_losses
        if not tried:
            return {}
        losses[how] = min(tried.values())
    log.warning(
        "cross-validated log loss of a linear head on %d training images: %.3g with backbone.preprocessing=none, "
        "%.3g with unit",
        len(chosen),
        losses["none"],
        losses["unit"],
    )
    return losses
