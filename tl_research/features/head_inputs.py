"""The inputs of a head on a frozen backbone: features of images, or of augmented views of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tl_research.data.datamodule import DataModule
from tl_research.features.extraction import ORIGINAL
from tl_research.features.summary import show_features
from tl_research.features.table import FeatureTable
from tl_research.runs.run import Phase


@dataclass
class HeadInputs:
    """Features and labels of the splits."""

    phase: Phase
    data: DataModule
    features: FeatureTable

    @property
    def views(self) -> int:
        """The number of views of each image that a head learns from."""
        return self.features.options.views or 1

    @property
    def views_are_kept(self) -> bool:
        """Whether a head learns from a fixed number of views, instead of from a new one each epoch."""
        return self.features.options.views is not None

    def ensure(self, *, validation: bool) -> None:
        """Compute all features that a stage and the evaluation need, in one pass over the images; with `validation` the
        head will learn from the validation images, too."""
        everything = np.arange(len(self.data))
        if not self.views_are_kept:
            wanted = [(everything, ORIGINAL)]
        else:
            trained = self.data.indices("train", "val") if validation else self.data.indices("train")
            wanted = [(self.data.indices("val", "test"), ORIGINAL), *((trained, view) for view in range(self.views))]
        computed, hit = self.features.computed, self.features.hit
        with self.phase("features"):
            self.features.ensure(wanted)
        if (computed, hit) != (self.features.computed, self.features.hit):
            name = self.features.note.get("backbone")
            what = f"features of {name}" if name else "features"
            show_features(self.features.computed - computed, self.features.hit - hit, what)

    def get(self, indices: np.ndarray, view: int = ORIGINAL) -> np.ndarray:
        """Return the features of one view of these examples: float32 `(n, d)`."""
        with self.phase("features"):
            return self.features.get(indices, view)

    def learned(self, *splits: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the features and labels that a head learns from, the views of an image one after the other."""
        indices = self.data.indices(*splits)
        views = range(self.views) if self.views_are_kept else [ORIGINAL]
        rows = np.stack([self.features.get(indices, view) for view in views], axis=1)
        return rows.reshape(-1, rows.shape[-1]), self.data.labels[indices].repeat(len(views))

    def groups(self, *splits: str) -> np.ndarray | None:
        """Return what folds may not divide, for each image; see `DataModule.kept_together`."""
        return self.data.kept_together(self.data.indices(*splits))

    def plain(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the features and labels of the images without augmentation."""
        indices = self.data.indices(split)
        return self.features.get(indices), self.data.labels[indices]
