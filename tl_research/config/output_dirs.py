"""Name the directories of a sweep and its jobs after their overrides, so that the same command finds its jobs again and
different sweeps never share one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

MOST_CHARACTERS = 80

# Overrides that change neither a result nor the set of jobs.
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
    """Return `outputs/sweeps/<name>` or `outputs/extract/<name>`."""
    return Path("outputs", "sweeps" if command == "train" else command, name(overrides))


def name(overrides: Iterable[str]) -> str:
    """Return a readable name such as `backbone=resnet50,seed=0-4f1c9a02b77e`: the same for any order of the overrides,
    different for other overrides. Paths change the hash only."""
    meaning = sorted(text for text in overrides if not text.lstrip("+~").startswith(_WITHOUT_MEANING))
    digest = hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]
    # Commas and brackets are special to shells, and non-ASCII characters to some file systems.
    words = [
        re.sub(r"[^\w.=+-]+", "-", text, flags=re.ASCII).strip("-")
        for text in meaning
        if not re.search(r"=['\"]?(/|~|\.{1,2}/)", text)
    ]
    readable = ",".join(words)[:MOST_CHARACTERS].rstrip(",-=.")
    return f"{readable}-{digest}" if readable else digest


# A resolver, because Hydra computes a job's directory in the job's process, perhaps on another machine.
OmegaConf.register_new_resolver("job_dir", name, replace=True)
