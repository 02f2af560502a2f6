"""Save a run within a stage or between two, and restore it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.runs.checkpoint import CheckpointState
from tl_research.training.trained_weights import BestEpoch, Weights

if TYPE_CHECKING:
    from tl_research.runs.run import Run
    from tl_research.training.classifier_state import ClassifierState

OUT_OF_FOLD = ("out_of_fold_logits", "out_of_fold_labels")
MOST_WRITING = 0.1
"""The share of the time that checkpoints may take: an epoch of a head takes milliseconds."""


@dataclass
class RunCheckpoints:
    """Checkpoints of one run: the classifier, the best epoch, the history of all stages and the metrics so far.

    `history` is shared with the stage runner, which adds to it. `used` are the seconds that earlier processes spent on
    the run.
    """

    run: Run
    state: ClassifierState
    history: list[dict[str, Any]]
    used: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _saved: float = -math.inf
    _saving: float = 0.0
    """`_saved` is when the last checkpoint was written, `_saving` the seconds that took."""

    def save_epoch(self, stage: int, best: BestEpoch, loop: CheckpointState, *, whole: bool) -> None:
        """Save within stage number `stage`, where its training loop is at `loop`. After a `whole` epoch only if writing
        does not take too much of the time."""
        if not whole or (time.monotonic() - self._saved) * MOST_WRITING >= self._saving:
            self.save(stage, best, loop)
            self.run.write_history([*self.history, *loop.facts["rows"]])

    def save(self, stage: int, best: BestEpoch, loop: CheckpointState | None = None) -> None:
        """Save at the beginning of stage number `stage`, or within it."""
        began, state = time.monotonic(), self.state
        facts = {
            "stage": stage,
            "history": self.history,
            "metrics": self.run.metrics | best.metrics(),
            "features": [state.features.computed, state.features.hit],
            "backbone_moved": state.backbone_changed,
            "used": self.used + time.monotonic() - self._began,
        }
        held_out = {} if state.held_out is None else {"held_out": state.held_out}
        if state.out_of_fold is not None:
            held_out |= dict(zip(OUT_OF_FOLD, state.out_of_fold, strict=True))
        if state.test_by_halves is not None:
            held_out["test_by_halves"] = state.test_by_halves
        changed = state.trained.now(state.classifier)
        parts = {
            "run": CheckpointState(facts, held_out),
            "moved": _by_position(changed),
            "frozen": _by_position(state.frozen),
        }
        if best.stage is not None:
            parts["best"] = best.state()
        if loop is not None:
            parts["fit"] = loop
        self.run.checkpoints.write(CheckpointState.nested(**parts))
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def restore(self, parts: dict[str, CheckpointState]) -> BestEpoch:
        """Return to where a checkpoint was saved. The classifier has its head already.

        Raises:
            InputError: the checkpoint is of another network.
        """
        state, facts = self.state, parts["run"].facts
        changed = _positions(parts["moved"])
        if not state.trained.fits(state.classifier, changed):  # only possible where an older version left it
            raise InputError(
                f"resume={self.run.directory}: its checkpoint is of another network; add fresh=true to begin it anew"
            )
        state.trained.restore_checkpoint(state.classifier, changed)
        self.history[:] = facts["history"]
        self.run.metrics |= facts["metrics"]
        state.features.computed += facts["features"][0]
        state.features.hit += facts["features"][1]
        arrays = parts["run"].arrays
        state.held_out, state.backbone_changed = arrays.get("held_out"), facts["backbone_moved"]
        state.out_of_fold = (arrays[OUT_OF_FOLD[0]], arrays[OUT_OF_FOLD[1]]) if OUT_OF_FOLD[0] in arrays else None
        state.test_by_halves = arrays.get("test_by_halves")
        state.frozen = _positions(parts["frozen"]) if "frozen" in parts else {}
        self.used = facts["used"]
        return BestEpoch.of(parts["best"], facts["metrics"]) if "best" in parts else BestEpoch()


def _by_position(weights: Weights) -> CheckpointState:
    return CheckpointState({}, {str(position): value for position, value in weights.items()})


def _positions(state: CheckpointState) -> Weights:
    return {int(position): value for position, value in state.arrays.items()}
