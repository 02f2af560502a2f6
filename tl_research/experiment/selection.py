"""Choose the backbone of a run, or a combination of several, by cross-validation on its training and validation images.

No backbone is best everywhere where there is little data (arXiv 2410.08592), and features computed once cost nothing to
look at again: each network passes over the images once, and combinations are made of the rows. The parts of one are fed
from images of one size; all candidates are looked at in that size, the largest of their own, so that the rows of a part
are those of the network alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research.experiment.candidates import Candidate, CandidateRow, Network, judge, search_near, thinned_images
from tl_research.experiment.summary import show_choice
from tl_research.features.head_inputs import HeadInputs
from tl_research.models.backbone import Backbone
from tl_research.models.blocks import multiply_accumulates
from tl_research.models.combined import Auto, Combined
from tl_research.runs.identity import identity
from tl_research.runs.reader import read_selection
from tl_research.runs.run import Run
from tl_research.system.versions import versions
from tl_research.training.head_coordinates import gram_coordinates, gram_matrix
from tl_research.training.logistic_regression import STRENGTHS, Choice, choose_l2
from tl_research.training.optimizer import LBFGS

if TYPE_CHECKING:
    from tl_research.data.datamodule import DataModule
    from tl_research.experiment.experiment import Experiment

log = logging.getLogger(__name__)

FILE = "selection.json"

SPLITS = "train", "val"
"""The images that choose: never those of the test."""
MOST_PARTS = 4
"""Networks, at most, that are put together without having been seen to help one by one."""
MOST_IMAGES = 2000
"""Images, or views of them, at most that choose: the memory and time of a candidate grow with square and cube."""


def choose_backbone(
    experiment: Experiment, run: Run, data: DataModule, threads: int, deadline: float
) -> tuple[Experiment, Choice | None]:
    """Return the experiment with the backbone that is best for its images in place of `backbone=auto`, and the
    cross-validation of a linear head on it, where all images to learn from choose; any other experiment as it is.

    The choice is recorded in the run's `config.yaml`, `metrics.json` and `selection.json`, each candidate as a run
    below `candidates/`. No candidate is begun after `deadline` (`time.monotonic`) but the default and one to choose.

    A run that continues from a checkpoint keeps its choice.
    """
    auto = experiment.backbone
    if not isinstance(auto, Auto):
        return experiment, None
    selection = _Selection(experiment, auto, run, data, threads, deadline)
    earlier = read_selection(run.directory).get("chosen") if run.resumes else None
    if earlier:
        return selection.with_backbone(earlier), None
    with run.phase("selection"):
        candidates = list(selection.look())
        together = [each for each in candidates if each.eligible and len(each.networks) > 1]
        largest = max(together, key=lambda each: (len(each.networks), -each.loss), default=None)
        chosen, rows, why = judge(candidates, selection.groups, largest)
        _record(run, rows, chosen, why)
        for candidate in candidates:
            selection.write_run(candidate)
    show_choice(rows, why, "backbone")
    networks = {network.recipe.name: network for candidate in candidates for network in candidate.networks}.values()
    run.metrics |= {"backbone": "auto", "chosen": chosen.name, "candidates": len(candidates)}
    run.metrics |= {f"selection_{key}": sum(getattr(each, key) for each in networks) for key in ("computed", "hit")}
    learned = chosen.validated if selection.takes_all else None
    return selection.with_backbone([part.recipe.name for part in chosen.networks]), learned


@dataclass(frozen=True)
class NetworkCandidate(Candidate):
    """One network or several side by side."""

    networks: tuple[Network, ...] = ()


@dataclass
class _Selection:
    """What candidates are looked at with."""

    experiment: Experiment
    auto: Auto
    run: Run
    data: DataModule
    threads: int
    deadline: float
    _last: int = 0
    """The penalty of the last candidate, as a number of `STRENGTHS`, beside which the next one's is looked for."""

    @property
    def groups(self) -> np.ndarray | None:
        """What folds may not divide, for each image that chooses."""
        return self.data.kept_together(self.data.indices(*SPLITS)[self._images])

    @property
    def takes_all(self) -> bool:
        """Return whether all images to learn from choose."""
        return len(self._images) == len(self.data.indices(*SPLITS))

    def look(self) -> Iterator[NetworkCandidate]:
        """Yield the default, then single networks from the smallest file of weights, then the best with others beside
        it, for as long as that lowers the loss, and the `MOST_PARTS` best together; for as long as there is time."""
        singles: list[NetworkCandidate] = []
        for recipe, config in self._singles():
            if any(each.eligible for each in singles) and time.monotonic() > self.deadline:
                log.warning("trainer.time_limit: %s and what follows were not looked at", recipe.name)
                break
            network = self._network(recipe, config)
            candidate = self._candidate((network,), network.seconds)
            eligible = recipe in [each for each, _ in self._eligible]
            note = ", ".join(["default"] * (recipe == self.auto.default) + ["not among"] * (not eligible))
            singles.append(replace(candidate, eligible=eligible, note=note))
            yield singles[-1]
        of_one_size = [each for each in singles if each.networks[0].recipe.image_size == self._size and each.eligible]
        of_one_size.sort(key=lambda each: each.loss)
        networks = [each.networks[0] for each in of_one_size]
        parts, left, most = tuple(networks[:1]), networks[1:], 1
        loss = of_one_size[0].loss if of_one_size else math.inf
        while left and time.monotonic() < self.deadline:
            tried, most = [], len(parts) + 1
            for network in left:
                tried.append(self._candidate((*parts, network), 0.0))
                yield tried[-1]
                if time.monotonic() > self.deadline:
                    break
            better = min(tried, key=lambda each: each.loss)
            if better.loss >= loss:
                break
            parts, loss = better.networks, better.loss
            left = [network for network in left if network is not parts[-1]]
        if len(networks[:MOST_PARTS]) > most and time.monotonic() < self.deadline:
            yield self._candidate(tuple(networks[:MOST_PARTS]), 0.0)

    @cached_property
    def _size(self) -> int:
        return max(each.image_size or 0 for each in self.auto.among)

    @cached_property
    def _eligible(self) -> list[tuple[Backbone, dict[str, Any]]]:
        """The candidates in the common size, those with the smallest files first, and the default if it is one. A
        network that is among them in several sizes is looked at in each of these."""
        configs: list[dict[str, Any]] = self.experiment.config["backbone"]["among"]
        pairs = list(zip(self.auto.among, configs, strict=True))
        pairs.sort(key=lambda pair: sum(path.stat().st_size for path in pair[0].files()))
        networks = [config | {"name": "", "image_size": 0} for _, config in pairs]
        in_own = [networks.count(network) > 1 for network in networks]
        resized = [pair if own else _with_size(*pair, self._size) for pair, own in zip(pairs, in_own, strict=True)]
        return [*(pair for pair in pairs if pair[0] == self.auto.default and pair not in resized), *resized]

    def _singles(self) -> list[tuple[Backbone, dict[str, Any]]]:
        default = self.auto.default
        if default is None or not default.is_there() or default in [each for each, _ in self._eligible]:
            return self._eligible
        return [(default, self.experiment.config["backbone"]["default"]), *self._eligible]

    def _network(self, recipe: Backbone, config: dict[str, Any]) -> Network:
        began = time.perf_counter()
        backbone = recipe.build()
        table = self.experiment.feature_table(backbone, self.data, self.threads, recipe)
        inputs = HeadInputs(self.run.phase, self.data, table)
        inputs.ensure(validation=True)
        rows = inputs.learned(*SPLITS)[0].reshape(-1, inputs.views, table.row.shape[-1])[self._images]
        return Network(
            recipe=recipe,
            config=config,
            gram=gram_matrix(rows.reshape(-1, rows.shape[-1])),
            parameters=backbone.count_params(),
            operations=sum(multiply_accumulates(backbone)),
            seconds=time.perf_counter() - began,
            computed=table.computed,
            hit=table.hit,
        )

    def _candidate(self, networks: tuple[Network, ...], seconds: float) -> NetworkCandidate:
        began = time.perf_counter()
        coordinates = gram_coordinates(np.sum([network.gram for network in networks], axis=0))
        validated = search_near(self._last, lambda *tried: self._validated(coordinates, *tried))
        self._last = int(np.argmin(np.abs(STRENGTHS - validated.l2)))
        return NetworkCandidate(
            name=" + ".join(network.recipe.name for network in networks),
            validated=validated,
            seconds=seconds + time.perf_counter() - began,
            parameters=sum(network.parameters for network in networks),
            operations=sum(network.operations for network in networks),
            networks=networks,
        )

    def _validated(self, coordinates: np.ndarray, strengths: np.ndarray, patience: int) -> Choice:
        from threadpoolctl import threadpool_limits

        experiment, views = self.experiment, self.experiment.features.views or 1
        labels = self.data.labels[self.data.indices(*SPLITS)][self._images].repeat(views)
        given = coordinates, labels, LBFGS(), experiment.seed, views, self.groups
        with threadpool_limits(1, "blas"):
            return choose_l2(*given, experiment.trainer.balance(self.data, *SPLITS), strengths, patience)

    @cached_property
    def _images(self) -> np.ndarray:
        """The images that choose, among those of the splits."""
        most = MOST_IMAGES // (self.experiment.features.views or 1)
        return thinned_images(self.data.labels[self.data.indices(*SPLITS)], most, self.experiment.seed)

    def write_run(self, candidate: NetworkCandidate) -> None:
        """Record a candidate as a run of its own: `python train.py resume=DIRECTORY fresh=true` makes all of it."""
        recipes, configs = zip(*((each.recipe, each.config) for each in candidate.networks), strict=True)
        experiment = _with_backbone(self.experiment, recipes, configs)
        folder = self.run.directory / "candidates" / candidate.name.replace(" ", "")
        run = Run.claim(folder, "replace")
        choices = experiment.config.get("choices", {}) | {"backbone": candidate.name}  # a leaderboard tells them apart
        run.write_config(experiment.config | {"choices": choices})
        run.write_json("classes.json", list(self.data.class_names))
        validated = candidate.validated
        if validated.log_losses:
            run.metrics = {"cv_accuracy": validated.accuracy, "cv_loss": candidate.loss, "l2": validated.l2}
        run.metrics |= {f"num_{split}": len(self.data.indices(split)) for split in SPLITS}
        run.metrics |= {
            "seed": experiment.seed,
            "num_classes": len(self.data.class_names),
            "num_parameters": candidate.parameters,
            "seconds_selection": round(candidate.seconds, 3),
            "features_computed": sum(each.computed for each in candidate.networks),
            "features_hit": sum(each.hit for each in candidate.networks),
            "dataset": self.data.dataset,
            **versions(),
        }
        run.write_json("metrics.json", run.metrics)
        run.set_status("done", identity=identity(experiment.config, self.data, experiment.start.files()).as_dict())
        run.close()

    def with_backbone(self, names: Sequence[str]) -> Experiment:
        """Return the experiment with the candidates of these names side by side as its backbone; its configuration,
        also in the run, says what was chosen."""
        pairs = {recipe.name: (recipe, config) for recipe, config in self._singles()}
        chosen = _with_backbone(self.experiment, *zip(*(pairs[name] for name in names), strict=True))
        backbone = self.experiment.config["backbone"] | {"chosen": chosen.config["backbone"]}
        config = self.experiment.config | {"backbone": backbone}
        self.run.write_config(config)
        return replace(chosen, config=config)


def _with_size(recipe: Backbone, config: dict[str, Any], size: int) -> tuple[Backbone, dict[str, Any]]:
    """Return a candidate in another size; a vision transformer whose patches do not fit, and a saved model, which has a
    size of its own, stay as they are."""
    if recipe.image_size in (size, None):
        return recipe, config
    option, *marks = recipe.name.split("@")
    name = "@".join([option, str(size), *(mark for mark in marks if not mark.isdecimal())])
    try:
        return replace(recipe, image_size=size, name=name), config | {"image_size": size, "name": name}
    except ValueError:
        return recipe, config


def _with_backbone(
    experiment: Experiment, recipes: Sequence[Backbone], configs: Sequence[dict[str, Any]]
) -> Experiment:
    backbone, config = recipes[0], dict(configs[0])
    if len(recipes) > 1:
        backbone = Combined(parts=tuple(recipes), image_size=recipes[0].image_size)
        config = {"_target_": "tl_research.targets.Combined", "name": backbone.name, "parts": list(map(dict, configs))}
        config |= {"image_size": backbone.image_size, "weights": "parts", "seed": 0}
    return replace(experiment, backbone=backbone, config=experiment.config | {"backbone": config})


def _record(run: Run, rows: Sequence[CandidateRow], chosen: NetworkCandidate, why: str) -> None:
    names = [network.recipe.name for network in chosen.networks]
    run.write_json(FILE, {"chosen": names, "why": why, "candidates": [asdict(row) for row in rows]})
