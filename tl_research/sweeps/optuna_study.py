"""The study of a search on disk: propose trials, record results, and retry trials whose process died."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tl_research.errors import InputError
from tl_research.metrics.classification import direction
from tl_research.reports.leaderboard import order
from tl_research.runs.reader import without_fresh
from tl_research.sweeps.optuna_journal import check_is_journal, mend
from tl_research.system.files import write_atomically
from tl_research.system.locks import Owner
from tl_research.training.pruning import load_optuna, open_journal

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

    from tl_research.config.search_space import Space

NAME = "search"
SamplerName = Literal["tpe", "random"]


class SearchStudy:
    """A search on disk: its space, its monitor and all trials so far.

    Args:
        journal: the file; it and its folder are created if missing.
        monitor: metric by which trials are compared; its name determines the direction.
        sampler: `tpe` (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011) or `random`.
        seed: proposals depend only on it and on the number and values of earlier trials, so an interrupted search
            continues as it would have. None: random proposals.
        startup: number of random trials at the start; no trial is pruned before so many are complete.
        parallel: number of trials that run at once.
        fresh: delete the journal first.

    Raises:
        InputError: the file is no journal, it holds another search, or it should be deleted while other processes use
            it.
    """

    def __init__(
        self,
        journal: Path,
        monitor: str,
        space: Space,
        *,
        sampler: SamplerName,
        seed: int | None,
        startup: int,
        parallel: int = 1,
        fresh: bool = False,
    ) -> None:
        self.journal, self.monitor, self.space = journal.absolute(), monitor, space
        self._sampler, self._seed, self._startup, self._parallel = sampler, seed, startup, parallel
        self._optuna = load_optuna()
        check_is_journal(self.journal)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.owner = Owner(self.journal.with_name(self.journal.name + ".owners"))
        # Proposals depend on the order, which must not depend on that of the command line.
        dimensions = sorted(space.dimensions, key=lambda dimension: dimension.name)
        self._distributions = {d.name: d.distribution() for d in dimensions}
        try:
            with self.owner.alone():
                mend(self.journal)
                if fresh:
                    self._delete()
                self.study = self._open()
        except BaseException:
            self.close()
            raise
        self._failed_before = {t.number for t in self.trials() if t.state.name == "FAIL"}

    def _delete(self) -> None:
        if not self.journal.exists():
            return
        storage = open_journal(self.journal)
        trials = [t for study in storage.get_all_studies() for t in storage.get_all_trials(study._study_id)]
        if any(t.state.name == "RUNNING" and self.owner.lives(t.user_attrs.get("owner")) for t in trials):
            raise InputError(f"fresh=true: other processes are at work on {self.journal}; wait for them, or end them")
        self.journal.unlink()

    def _open(self) -> optuna.Study:
        sense = "minimize" if direction(self.monitor) == "min" else "maximize"
        study = self._optuna.create_study(
            study_name=NAME,
            storage=open_journal(self.journal),
            sampler=self._optuna.samplers.RandomSampler(),
            direction=sense,
            load_if_exists=True,
        )
        about = {"monitor": self.monitor, **self.space.signature()}
        known = {key: study.user_attrs.get(key) for key in about}
        if any(study.user_attrs.values()) and known != about:
            key = next(key for key in about if known[key] != about[key])
            what = {"monitor": "by another monitor", "fixed": "with other overrides", "dimensions": "in another space"}
            raise InputError(
                f"{self.journal}: holds a search {what[key]}; name another hydra.sweep.dir, or give the same command"
            )
        for key, value in {**about, "startup": self._startup}.items():
            study.set_user_attr(key, value)
        return study

    def trials(self) -> list[FrozenTrial]:
        """Return all trials in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    def ask(self, n_trials: int) -> list[Trial]:
        """Propose the next trials, at most `parallel`; none once there are `n_trials`, counted over all processes.

        Complete and pruned trials count, and those that failed since this process began; earlier failures are replaced.
        """
        with self.owner.alone():
            self._retry_lost()
            missing = n_trials - sum(self._counts(trial) for trial in self.trials())
            return [self._ask() for _ in range(min(self._parallel, missing))]

    def _counts(self, trial: FrozenTrial) -> bool:
        if trial.state.name == "FAIL":
            return trial.number not in self._failed_before and "killed" not in trial.user_attrs
        return trial.state.name != "WAITING"

    def _ask(self) -> Trial:
        seed, number = self._seed, len(self.trials())
        if seed is not None:
            seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        self.study.sampler = new_sampler(self._sampler, seed, self._startup, parallel=self._parallel > 1)
        trial = self.study.ask(self._distributions)
        trial.set_user_attr("owner", self.owner.number)
        return trial

    def _retry_lost(self) -> None:
        """Queue trials whose process died again, with the same parameters: their runs continue where they were."""
        states = self._optuna.trial.TrialState
        trials = self.trials()
        waiting = [t.system_attrs.get("fixed_params") for t in trials if t.state == states.WAITING]
        for frozen in trials:
            if frozen.state != states.RUNNING or self.owner.lives(frozen.user_attrs.get("owner")):
                continue
            if "pruned" in frozen.user_attrs:
                self.study.tell(frozen.number, state=states.PRUNED)
                continue
            if frozen.params and frozen.params not in waiting:
                self.study.enqueue_trial(frozen.params)
            self._optuna.trial.Trial(self.study, frozen._trial_id).set_user_attr("killed", True)
            self.study.tell(frozen.number, state=states.FAIL)

    def tell(self, trial: Trial, value: float | None, reason: str | None = None) -> FrozenTrial:
        """Record the result of a trial: a value, or None if it was pruned (which its run has recorded) or failed."""
        states = self._optuna.trial.TrialState
        frozen = self.trials()[trial.number]
        if frozen.state.is_finished():  # another process has given this trial up
            return frozen
        if value is not None:
            return self.study.tell(trial, value)
        if "pruned" in frozen.user_attrs:
            return self.study.tell(trial, state=states.PRUNED)
        trial.set_user_attr("failed", reason or "it gave no number")
        return self.study.tell(trial, state=states.FAIL)

    def known(self, values: list[str]) -> FrozenTrial | None:
        """Return a finished trial with the same overrides, whose run would be the same; None if there is none."""
        ended = (t for t in self.trials() if t.state.name in ("COMPLETE", "PRUNED"))
        return next((t for t in ended if self.space.values(t.params) == values), None)

    def best(self) -> FrozenTrial | None:
        """Return the best complete trial, by the leaderboard's rule; None if there is none."""
        complete: list[Any] = [t for t in self.trials() if t.state.name == "COMPLETE"]
        return min(complete, key=lambda t: order(self.monitor, t.value, t.number, random=_is_random(t)), default=None)

    def close(self) -> None:
        """Release the study to other processes."""
        self.owner.close()


def _is_random(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("random_weights"))


def new_sampler(name: SamplerName, seed: int | None, startup: int, *, parallel: bool) -> optuna.samplers.BaseSampler:
    """Make a sampler that proposes after `startup` random trials; `parallel` where several run at once."""
    samplers = load_optuna().samplers
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():  # until Optuna 4.9 `constant_liar` calls itself experimental
        warnings.simplefilter("ignore")
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=parallel)


def write_best(study: SearchStudy, best: FrozenTrial, folder: Path, options: Sequence[str]) -> None:
    """Write the best trial to `best.yaml`; its first line is the command, with `options`, that trains it again."""
    import yaml

    overrides = [*without_fresh(study.space.fixed), *study.space.values(best.params)]
    content = {"monitor": study.monitor, "value": best.value, "trial": best.number, "overrides": overrides}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "best.yaml", f"# python train.py {shlex.join([*options, *overrides])}\n{text}")
