"""The classifier of a run while it is trained: its parts, what training has changed in them, and its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tl_research.features.extraction import ORIGINAL
from tl_research.features.head_inputs import HeadInputs
from tl_research.features.table import Features, FeatureTable
from tl_research.metrics.probabilities import softmax
from tl_research.models.classifier import build_classifier
from tl_research.training.logistic_regression import OutOfFold
from tl_research.training.trained_weights import TrainedWeights, Weights

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule
    from tl_research.runs.run import Phase


@dataclass
class ClassifierState:
    """A backbone and a head, and the features of the backbone as it is now.

    `head` is None before the stage that computes a `DirectHead`. `held_out` is set where the head was fitted on the
    validation images too: logits `(n, num_classes)` for them from a head that was not. `out_of_fold` is set where the
    head was solved with cross-validation, on any images; `judged` are their numbers among train + val.
    `test_by_halves`, see `answers_of_halves`, is set where it was solved on the backbone as it was loaded.
    `chosen_by_val`: the validation images chose the classifier.
    """

    data: DataModule
    backbone: keras.Model
    head: keras.Model | None
    features: FeatureTable
    threads: int
    phase: Phase
    trained: TrainedWeights = field(default_factory=TrainedWeights)
    held_out: np.ndarray | None = None
    out_of_fold: OutOfFold | None = None
    judged: np.ndarray | None = None
    test_by_halves: np.ndarray | None = None
    frozen: Weights = field(default_factory=dict)
    """The weights that had changed before a stage trained the backbone."""
    chosen_by_val: bool = False
    backbone_changed: bool = False
    _classifier: keras.Model | None = None

    def __post_init__(self) -> None:
        self._loaded_features = self.features

    @classmethod
    def of_model(cls, classifier: keras.Model, data: DataModule, threads: int, phase: Phase) -> ClassifierState:
        """Make the state of a whole classifier, pixels -> logits, which is trained no further."""
        table = FeatureTable(classifier, data, Features(), "keras", threads)
        return cls(data, classifier, None, table, threads, phase, backbone_changed=True, _classifier=classifier)

    @property
    def classifier(self) -> keras.Model:
        """Join backbone and head: pixels -> logits."""
        if self._classifier is None:
            assert self.head is not None
            self._classifier = build_classifier(self.backbone, self.head)
        return self._classifier

    def replace_head(self, head: keras.Model) -> None:
        """Put another head on the backbone."""
        self.head, self._classifier = head, None

    @property
    def inputs(self) -> HeadInputs:
        """Make features and labels available to heads."""
        return HeadInputs(self.phase, self.data, self.features)

    @property
    def image_size(self) -> int:
        """Give the side of the network's square input, in pixels."""
        return int(self.backbone.input_shape[1])

    def has_changed(self, part: keras.Model) -> bool:
        """Return whether training has changed anything in a part of the classifier."""
        return self.trained.includes(self.classifier, part)

    def update_features(self) -> None:
        """Use the features of the backbone as training has left it."""
        if self.backbone_changed:
            self.features = self.features.after_training()

    def use_loaded_backbone(self) -> None:
        """Use the features of the backbone as it was loaded, whose weights have been restored."""
        self.features, self.backbone_changed = self._loaded_features, False

    def logits(self, *splits: str) -> np.ndarray:
        """Compute the classifier's logits for the examples of these splits: float32 `(n, num_classes)`."""
        return self._logits(self.data.indices(*splits), ORIGINAL)

    def averaged_logits(self, split: str, views: int) -> np.ndarray:
        """Average probabilities over each image and `views` augmented versions of it; return their logarithms."""
        indices = self.data.indices(split)
        probabilities = [softmax(self._logits(indices, view)) for view in (ORIGINAL, *range(views))]
        return np.log(np.maximum(np.mean(probabilities, axis=0), 1e-30)).astype(np.float32)

    def _logits(self, indices: np.ndarray, view: int) -> np.ndarray:
        if self.backbone_changed:
            # By Keras: for so few images conversion would not pay.
            return FeatureTable(self.classifier, self.data, Features(), "keras", self.threads).get(indices, view)
        assert self.head is not None
        return np.asarray(self.head(self.inputs.get(indices, view), training=False))
