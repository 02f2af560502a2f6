"""Read the outcome of a job from its return value and its run directory."""

from __future__ import annotations

import math
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig


def outcome(returned: JobReturn, directory: Path) -> tuple[float | None, str | None]:
    """Return the value of the job that wrote to `directory`, or the reason why it has none."""
    value = returned._return_value  # the public one prints and raises for a job that did not complete
    if returned.status != JobStatus.COMPLETED:
        return None, f"{type(value).__name__}: {value}".splitlines()[0]
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value), None
    return None, _reason(directory) or f"its value was {value}"


def _reason(directory: Path) -> str | None:
    """Return the reason that the run's status.json gives."""
    from tl_research.errors import InputError
    from tl_research.runs.run import Run

    try:
        return Run.open(directory).status.get("reason")
    except (InputError, OSError, ValueError):
        return None


def is_outdated(config: DictConfig, directory: Path) -> bool | None:
    """Whether a run was made with other images, weights or code than its job would use now; None if that is unknown."""
    from tl_research.config.compose import build_experiment
    from tl_research.errors import InputError
    from tl_research.runs.identity import compare, identity
    from tl_research.runs.run import Run

    try:
        run = Run.open(directory)
        if not run.status["identity"]:
            return None
        experiment = build_experiment(config)
        data = experiment.data.load(experiment.features.file_index())
        job = identity(experiment.config, data, experiment.start.files())
        return bool(compare(run, job, experiment.config, data).changed)
    except (InputError, OSError):
        return None
