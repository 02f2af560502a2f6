"""Experiment: the root recipe, which trains, evaluates and records a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tl_research.data.sources import Source
from tl_research.errors import InputError, MissingResourceError
from tl_research.experiment.rules import check_rules, test_images_choose_nothing
from tl_research.features.engines import EngineName
from tl_research.features.table import Features
from tl_research.models.backbone import Backbone
from tl_research.models.classifier import BatchNorm
from tl_research.models.head import Head
from tl_research.recipe import Positive, Seed, recipe
from tl_research.runs.run import Existing, Run
from tl_research.system.memory import memory_error
from tl_research.training.callbacks import Callback
from tl_research.training.loop import TrainLoop
from tl_research.training.optimizer import Optimizer
from tl_research.training.options import TrainOptions
from tl_research.training.stage import Stage

if TYPE_CHECKING:
    import keras

    from tl_research.data.datamodule import DataModule
    from tl_research.features.table import FeatureTable

Monitor = Annotated[
    Literal[
        "val_accuracy",
        "val_balanced_accuracy",
        "val_loss",
        "val_macro_f1",
        "val_auroc",
        "val_auprc",
        "cv_accuracy",
    ],
    BeforeValidator(test_images_choose_nothing),
]


@recipe
class ReportOptions:
    """What reports may show."""

    thumbnails: bool = True


@recipe
class Experiment:
    """All options of a run. The fields are the schema of the configuration: there are no other keys."""

    backbone: Backbone
    head: Head
    data: Source
    optimizer: Optimizer
    transfer: dict[str, Any]
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
    report: ReportOptions = Field(default_factory=ReportOptions)
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
    def stages(self) -> dict[str, Stage]:
        """Give the stages of `transfer`, in order, which also says how they are chosen."""
        return {name: each for name, each in self.transfer.items() if isinstance(each, Stage)}

    @property
    def start(self) -> Backbone:
        """Give the backbone that training starts from: with random weights if a stage requires them."""
        random = any(stage.random_weights for stage in self.stages.values())
        return replace(self.backbone, weights=None) if random or self.falls_back else self.backbone

    @cached_property
    def falls_back(self) -> bool:
        """Return whether weights are random because the configured ones are missing and `missing_weights` allows it."""
        if self.missing_weights == "skip" or self.backbone.weights is None:
            return False
        try:
            self.backbone.preflight()
        except InputError as error:
            return not (memory_error(error) or self._has_weights_file)
        return False

    @property
    def _has_weights_file(self) -> bool:
        """Return whether the file of weights is there: what is wrong with it then is no lack."""
        return Path(self.backbone.weights or "").expanduser().is_file()

    def feature_table(
        self, network: keras.Model, data: DataModule, threads: int, backbone: Backbone | None = None
    ) -> FeatureTable:
        """Open the table of the features of a network, which `backbone`, by default `start`, has built."""
        from tl_research.features.table import FeatureTable

        backbone = backbone or self.start
        note = {"backbone": backbone.name, "weights": str(backbone.weights)}
        return FeatureTable(network, data, self.features, self.engine, threads, note)

    @property
    def part(self) -> tuple[int, int]:
        """Parse `shard` into the part and the number of parts."""
        number, _, count = (self.shard or "0/1").partition("/")
        return int(number), int(count)

    def preflight(self) -> None:
        """Check that images and weights exist, else raise `MissingResourceError`, which names all that is missing, and
        that callbacks have what they need. Imports no TensorFlow."""
        for callback in filter(None, self.callbacks.values()):
            callback.preflight()
        missing: dict[str, str] = {}
        for what, part in (("data", self.data), ("weights", self.start)):
            try:
                part.preflight()
            except InputError as error:
                if memory_error(error) or (what == "weights" and self._has_weights_file):
                    raise
                missing[what] = str(error)
        if missing:
            raise MissingResourceError(" and ".join(missing), "; and ".join(missing.values()))

    def run(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Train, evaluate and record a run.

        Args:
            directory: the run directory, created if need be; default `self.directory`, else a new one under `outputs/`.
            existing: how to treat a run that is in it (see `Run.claim`). With `resume`, one that is done, of this very
                configuration, data, weights and code, is returned as it is, and an unfinished one continues from its
                last checkpoint. `self.resume` stands for `continue`.

        Raises:
            InputError: the run is impossible, explained in one line. Its status says so too, but a run that may not be
                resumed stays as it is.
        """
        from tl_research.experiment.flow import run_experiment

        return run_experiment(self, directory, existing)

    def extract(self, directory: str | Path | None = None, existing: Existing = "refuse") -> Run:
        """Store the features of all images, or of one `shard`, without training.

        Raises:
            InputError: there is no store; or as `run` raises for data and weights.
        """
        from tl_research.experiment.flow import extract_features

        return extract_features(self, directory, existing)

    def rehearse(self, loops: Mapping[str, Callable[..., TrainLoop]]) -> None:
        """Run the stages as `run` does, with other training loops for single stages, by name. Leaves only stored
        features behind."""
        from tl_research.experiment.flow import rehearse

        rehearse(self, loops)
