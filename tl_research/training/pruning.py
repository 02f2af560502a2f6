"""Prune a run that is a trial of a search: it reports each epoch to the study on disk and ends early if other trials
were better by then. The sweeper names the trial in an environment variable of the run's process."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError

if TYPE_CHECKING:
    import keras
    import optuna

log = logging.getLogger(__name__)

TRIAL_VARIABLE = "TL_TRIAL"
"""`JOURNAL:STUDY:NUMBER`, set by the sweeper for each job."""


class PrunedError(Exception):
    """The run ended early because other trials of the search were better by then, not by an error."""


def load_optuna() -> Any:
    """Import `optuna` and silence it. Raises `InputError` if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError('a search needs Optuna, which is not installed: pip install "tl_research[optuna]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_journal(journal: Path) -> optuna.storages.BaseStorage:
    """Open the studies in a journal file, created if need be. Any number of processes may write to it.

    Raises:
        InputError: the file holds something else.
    """
    load_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(journal.absolute())
    try:
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    except OSError:
        raise
    except Exception as error:  # whatever Optuna raises on lines that it did not write
        raise InputError(f"{journal}: not a journal of Optuna's ({type(error).__name__}: {error})") from None


@dataclass
class Trial:
    """The trial that this process runs. `monitor` is the metric that the search compares; `trial` is Optuna's."""

    monitor: str
    trial: optuna.trial.Trial
    pruned: str | None = None
    """Why the run must end; None while it may continue."""

    def callback(self, *, last: bool) -> keras.callbacks.Callback:
        """Build a Keras callback that reports the epochs of one stage, counted over all stages, and ends it when the
        trial is worse than the median of the others at the same epoch (Golovin et al., "Google Vizier", 2017), but
        not after the last epoch of the `last` stage, where nothing is left to save."""
        import keras

        trial = self

        class Report(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                is_over = last and epoch + 1 >= (self.params or {}).get("epochs", 0)
                trial.report(epoch, logs or {}, prune=not is_over)
                if trial.pruned:
                    self.model.stop_training = True

        return Report()

    def report(self, epoch: int, logs: Mapping[str, float], *, prune: bool = True) -> None:
        """Report the metrics after `epoch` to the study, and set `pruned` if the run is not worth continuing."""
        from optuna.exceptions import UpdateFinishedTrialError

        name = self._metric_name(logs)
        if name not in logs:
            return
        value = float(logs[name])
        try:
            if math.isfinite(value) and epoch not in self._reported():  # a batch system may start a job again
                self.trial.report(value, epoch)
            if prune and (not math.isfinite(value) or self.trial.should_prune()):
                side = "above" if name.endswith("loss") else "below"
                than = f"is {side} the median of the trials so far" if math.isfinite(value) else "will not get better"
                self.pruned = f"pruned after epoch {epoch}: {name} {value:.4g} {than}"
                self.trial.set_user_attr("pruned", self.pruned)
        except UpdateFinishedTrialError:  # the search was killed and restarted without this run
            log.debug("trial %s is over already", self.trial.number)

    def check(self) -> None:
        """Raise `PrunedError` if the run must end."""
        if self.pruned:
            raise PrunedError(self.pruned)

    def _metric_name(self, logs: Mapping[str, float]) -> str:
        """Choose an epoch's metric that is closest to the monitored one: `val_accuracy` for `val_macro_f1`."""
        if self.monitor in logs:
            return self.monitor
        return "val_loss" if self.monitor.endswith("loss") else "val_accuracy"

    def _reported(self) -> Mapping[int, float]:
        return self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values


def current_trial() -> Trial | None:
    """Find the running trial that the environment names, if any. Imports Optuna only if it does."""
    address = os.environ.get(TRIAL_VARIABLE)
    if not address:
        return None
    journal, study_name, number = address.rsplit(":", 2)
    if not Path(journal).is_file():
        log.warning("%s: there is no such journal here, so this trial cannot be pruned", journal)
        return None
    optuna = load_optuna()
    study = optuna.load_study(
        study_name=study_name, storage=open_journal(Path(journal)), sampler=optuna.samplers.RandomSampler()
    )
    trials = study.get_trials(deepcopy=False)
    if int(number) >= len(trials) or trials[int(number)].state.is_finished():
        return None
    startup = study.user_attrs["startup"]
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup)
    trial = optuna.trial.Trial(study, trials[int(number)]._trial_id)
    return Trial(study.user_attrs["monitor"], trial)
