"""Experiment: the root recipe. `run()` goes from a source of images to a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tl_research.data.sources import Source
from tl_research.errors import InputError, LackingError
from tl_research.experiment.rules import check_rules
from tl_research.features.engines import EngineName
from tl_research.features.table import Features
from tl_research.models.backbone import Backbone
from tl_research.models.classifier import BatchNorm
from tl_research.models.head import Head
from tl_research.recipe import Positive, Seed, recipe
from tl_research.runs.run import Existing, Run
from tl_research.training.callbacks import Callback
from tl_research.training.loop import TrainLoop
from tl_research.training.optimizer import Optimizer
from tl_research.training.options import TrainOptions
from tl_research.training.stage import Stage

Monitor = Literal[
    "val_accuracy", "val_loss", "val_macro_f1", "val_auroc", "test_accuracy", "test_loss", "test_macro_f1", "test_auroc"
]


@recipe
class Experiment:
    """Everything one run needs to know. The fields are the schema of the configuration: there are no other keys."""

    backbone: Backbone
    head: Head
    data: Source
    optimizer: Optimizer
    transfer: dict[str, Stage]
    trainer: TrainOptions
    callbacks: dict[str, Callback | None]
    seed: Seed = 0
    deterministic: bool = False
    monitor: Monitor = "val_accuracy"
    bn: BatchNorm = "frozen"
    verbose: bool = True
    threads: Positive | None = None
    engine: EngineName = "auto"
    features: Features = Field(default_factory=Features)
    shard: str | None = None
    missing_weights: Literal["skip", "random"] = "skip"
    fresh: bool = False
    resume: str | None = None
    directory: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        check_rules(self)
        return self

    @property
    def start(self) -> Backbone:
        """The backbone that the run starts from: with random weights if a stage asks for them."""
        random = any(stage.random_weights for stage in self.transfer.values())
        return replace(self.backbone, weights=None) if random or self.falls_back else self.backbone

    @cached_property
    def falls_back(self) -> bool:
        """Whether weights are random because those asked for are not there, and `missing_weights` allows it."""
        if self.missing_weights == "skip":
            return False
        try:
            self.backbone.preflight()
        except InputError:
            return True
        return False

    @property
    def part(self) -> tuple[int, int]:
        """`shard` as numbers: which part of how many."""
        number, _, count = (self.shard or "0/1").partition("/")
        return int(number), int(count)

    def preflight(self) -> None:
        """Raises `LackingError` when images or weights are known not to be there. Imports no TensorFlow."""
        for what, part in (("data", self.data), ("weights", self.start)):
            try:
                part.preflight()
            except InputError as error:
                raise LackingError(what, str(error)) from None

    def run(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Train, evaluate and record; returns the run.

        Args:
            directory: the run directory, created if need be; default `self.directory`, else a new one under `outputs/`.
            existing: what to do with a run that is in it (see `Run.claim`). With `resume`, one that is done, of this
                very configuration, data, weights and code, is returned as it is, and one that is not continues from
                its last checkpoint. `self.resume` stands for `continue`.

        Raises:
            InputError: what was asked for cannot be done, in one line. The run's status says so, too, except that of a
                run that may not be resumed, of which nothing is touched.
        """
        from tl_research.experiment.flow import run_experiment

        return run_experiment(self, directory, existing)

    def extract(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Put the features of all images, or of those of one `shard`, into the store, and train nothing.

        Raises:
            InputError: there is no store, or what `run` raises for data and weights.
        """
        from tl_research.experiment.flow import extract_features

        return extract_features(self, directory, existing)

    def rehearse(self, loops: Mapping[str, Callable[..., TrainLoop]]) -> None:
        """Run the stages as `run` does, with these training loops for single stages, by name. Nothing but features
        stays of it."""
        from tl_research.experiment.flow import rehearse

        rehearse(self, loops)
