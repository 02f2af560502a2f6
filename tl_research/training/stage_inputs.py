"""Supply: what a stage of epochs is fed, and how much of it at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl_research.backend.train_step import TrainStep
from tl_research.features.head_inputs import HeadInputs
from tl_research.features.summary import show_features
from tl_research.features.table import DtypeRangeError, FeatureTable
from tl_research.models.blocks import find_blocks, split_backbone
from tl_research.training import inputs as feeds
from tl_research.training.inputs import StageInputs
from tl_research.training.stage import Stage

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

EVERY_EPOCH = "frozen blocks run in every epoch, for what they make of images is not kept"


@dataclass(frozen=True)
class InputFactory:
    """What a stage can be fed from: features that heads learn from, and the classifier's parts."""

    inputs: HeadInputs
    backbone: keras.Model
    head: keras.Model
    seed: int
    threads: int

    def maps(self, stage: Stage, moved: Callable[[keras.Model], bool]) -> FeatureTable | None:
        """What the blocks below those that learn make of each image, computed once; None where images change from
        epoch to epoch, where nothing lies below, or where maps would take too much room. `moved` tells whether a part
        of the backbone is no longer as it was loaded."""
        data, features = self.inputs.data, self.inputs.features
        below = stage.unfreeze not in (0, "all") and int(stage.unfreeze) < len(find_blocks(self.backbone))
        if not below or not data.augment.changes_nothing:
            return None
        prefix, _ = split_backbone(self.backbone, int(stage.unfreeze))
        maps = features.maps(prefix)
        if moved(prefix):
            maps = maps.after_training()
        wanted = data.indices("train", "val")
        room = maps.size_gb(len(wanted))
        if room > features.options.max_map_gb:
            log.info("%s: they would take %.1f GB, more than features.max_map_gb allows", EVERY_EPOCH, room)
            return None
        try:
            with self.inputs.phase("features"):
                maps.load(wanted)
        except DtypeRangeError as error:
            log.info("%s: %s", EVERY_EPOCH, error)
            return None
        show_features(maps.computed, maps.hit, "feature maps")
        return maps

    def feed(
        self, stage: Stage, learning: Sequence[keras.Variable], only_head: bool, maps: FeatureTable | None, size: int
    ) -> StageInputs:
        """Batches of `size` examples, for what is `learning`: of features where that is the head alone."""
        data = self.inputs.data
        if only_head:
            train, val, classes = self.inputs.learned("train"), self.inputs.plain("val"), len(data.class_names)
            return feeds.on_features(self.head, train, val, classes, size, self.seed)
        below = (self.backbone, self.head, stage.unfreeze, learning)
        if maps is not None:
            return feeds.on_maps(*below, maps, data, size, self.seed)
        return feeds.on_images(*below, data, size, self.seed, self.threads)


def fits_in_memory(step: TrainStep, feed: StageInputs, moving: Sequence[keras.Variable]) -> bool:
    """Whether the gradient of the first batch can be computed; always so where there is no GPU, for the memory that a
    CPU works in gives no error before it is too late. Of `moving`, what a forward pass moves is put back."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return True
    with closing(feed.train(0, 0)) as batches:
        batch = next(batches)
    before = [np.array(variable) for variable in moving]
    try:
        step.rehearse(batch)
    except tf.errors.ResourceExhaustedError:
        return False
    finally:
        for variable, value in zip(moving, before, strict=True):
            variable.assign(value)
    return True
