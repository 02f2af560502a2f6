"""Where a sweep and its jobs write: names made from their overrides, so that the same command finds its jobs again, and
no two sweeps meet by chance."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

MOST_CHARACTERS = 80

# What neither asks for another number nor makes another job.
_WITHOUT_MEANING = (
    "fresh",
    "missing_weights",
    "verbose",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweep.",
    "hydra.job",
    "hydra.verbose",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.batch",
)


def sweep_dir(command: str, overrides: Iterable[str]) -> Path:
    """`outputs/sweeps/<name>`, or `outputs/extract/<name>`."""
    return Path("outputs", "sweeps" if command == "train" else command, name(overrides))


def name(overrides: Iterable[str]) -> str:
    """`backbone=resnet50,seed=0-4f1c9a02b77e`: readable, one for any order of the overrides, another for others. Paths
    count, but are left out of what is read."""
    meaning = sorted(text for text in overrides if not text.lstrip("+~").startswith(_WITHOUT_MEANING))
    digest = hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]
    # Commas and brackets mean something to a shell, and what is not ASCII to some file systems.
    words = [
        re.sub(r"[^\w.=+-]+", "-", text, flags=re.ASCII).strip("-")
        for text in meaning
        if not re.search(r"=['\"]?(/|~|\.{1,2}/)", text)
    ]
    readable = ",".join(words)[:MOST_CHARACTERS].rstrip(",-=.")
    return f"{readable}-{digest}" if readable else digest


# Hydra asks for a job's folder in the process of the job, which may be on another machine: hence a resolver.
OmegaConf.register_new_resolver("job_dir", name, replace=True)
