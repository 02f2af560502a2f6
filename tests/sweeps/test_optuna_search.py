"""hydra/sweeper=optuna (search_space, search_preflight, optuna_study, optuna_journal, job_outcome): spaces, a study
that survives kills, and pruning."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tl_research.config import output_dirs  # noqa: F401 - registers job_dir
from tl_research.config.compose import build_experiment, hydra
from tl_research.config.search_space import Dimension, Space, read_space
from tl_research.errors import InputError
from tl_research.sweeps.optuna_study import SearchStudy
from tl_research.training.pruning import TRIAL_VARIABLE, PrunedError, Trial, current_trial, open_journal

pytestmark = pytest.mark.alone

optuna = pytest.importorskip("optuna")
NO_LOADER: Any = None


def one(text: str) -> Dimension:
    (dimension,) = read_space({"key": text}, [], NO_LOADER).dimensions
    return dimension


# Spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1,0.9)", Dimension("key", low=0.1, high=0.9)),
        ("tag(log, interval(1e-4,1e-1))", Dimension("key", low=1e-4, high=0.1, log=True)),
        ("tag(log, int(interval(1,100)))", Dimension("key", low=1, high=100, log=True, whole=True)),
        ("range(1,8)", Dimension("key", low=1, high=7, step=1, whole=True)),
        ("range(8,1,-3)", Dimension("key", low=2, high=8, step=3, whole=True)),
        ("range(0,1,0.25)", Dimension("key", low=0.0, high=0.75, step=0.25)),
        ("choice(a,'1',true,[1,2])", Dimension("key", ("a", "'1'", "True", "[1,2]"))),
        ("shuffle(choice(3,1,1))", Dimension("key", ("3", "1"))),
        ("a,b", Dimension("key", ("a", "b"))),
    ],
)
def test_sweep_syntax_is_a_dimension(text: str, expected: Dimension) -> None:
    assert one(text) == expected
    assert one(text).distribution()


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(-9, 9).filter(bool), st.booleans())
@example(0, 10, 1, True)
def test_a_range_holds_what_hydra_would_sweep_over(start: int, stop: int, step: int, tenths: bool) -> None:
    """In its own decimals: 0.30000000000000004 would be the name of another folder."""

    def spelled(number: int) -> str:
        return str(number / 10 if tenths else number)

    text = f"range({spelled(start)},{spelled(stop)},{spelled(step)})"
    values = {spelled(number) for number in range(start, stop, step)}
    if not values:
        with pytest.raises(InputError, match=r"key=range\("):
            one(text)
        return
    dimension = one(text)
    found: Any = dimension.distribution()
    count = round((found.high - found.low) / found.step) + 1
    assert {dimension.text(found.low + number * found.step) for number in range(count)} == values


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1))
@example(0.1234567, 0.0, 0.5)
def test_a_value_is_read_back_within_its_interval(low: float, width: float, share: float) -> None:
    found = one(f"interval({low!r},{low + width!r})")
    value = min(found.low + share * (found.high - found.low), found.high)
    read = OverridesParser.create().parse_override(f"key={found.text(value)}").value()
    assert found.low <= float(read) <= found.high  # type: ignore[arg-type]
    assert read == pytest.approx(value, rel=1e-5, abs=1e-300)


@pytest.mark.slow
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5, unique=True))
@example(["a,b", "c"])
@example(["it's", "null"])
def test_a_choice_is_the_value_that_was_typed(values: list[str]) -> None:
    quoted = ["'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'" for v in values]
    try:
        typed = OverridesParser.create().parse_override(f"key=choice({','.join(quoted)})")
    except Exception:  # Hydra's grammar has no words for it
        return
    elements: Any = typed.value()
    expected = list(dict.fromkeys(elements.list))
    choices = one(typed.get_value_string()).choices
    assert [OverridesParser.create().parse_override(f"key={choice}").value() for choice in choices] == expected


@given(st.text(max_size=40) | st.from_regex(r"(interval|range|choice|tag|glob|int)\([a-z0-9.,()*-]{0,20}\)"))
@example("interval(nan,1)")
@example("interval(0,1e999)")
@example("range(0,1,0)")
@example("int(range(0.5,2.5,0.5))")
@example("range(0,inf)")
@example("choice()")
def test_any_text_is_a_space_or_an_error_that_names_the_key(text: str) -> None:
    loader: Any = SimpleNamespace(get_group_options=lambda *_, **__: [])
    message = "some.key"
    try:
        space = read_space({"some.key": text}, ["other=1,2"], loader)
        assert all(d.distribution() and d.ends() for d in space.dimensions)
    except InputError as error:
        message = str(error)
    assert "some.key" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("backbone=interval(5,1)", "5.0 is greater than 1.0"),
        ("backbone=tag(log, interval(0,1))", "greater than 0"),
        ("backbone=tag(log, choice(1,2))", "log goes with interval"),
        ("backbone=tag(exp, interval(1,2))", "no tag 'exp'"),
        ("backbone=range(3,3)", "no number in this range"),
        ("backbone=range(1,8,0)", "a step of 0"),
        ("backbone=interval(0,inf)", "inf is not a number"),
        ("backbone=interval(a,b)", "cannot be read"),
        ("backbone=glob(zz*)", "no option has such a name"),
        ("hydra.x=1,2", "Hydra's own keys"),
    ],
)
def test_an_invalid_space_is_named(text: str, why: str) -> None:
    with hydra() as composer, pytest.raises(InputError) as refused:
        read_space(dict([text.split("=")]), [], composer.config_loader)
    assert str(refused.value).startswith(f"hydra.sweeper.params.{text}: ")
    assert why in str(refused.value)


def test_the_command_line_wins_and_plain_values_are_fixed() -> None:
    params = {"a": "choice(1,2)", "b": {"c": "interval(0,1)", "d": "range(1,3)"}, "e": None, "f": 3}
    with hydra() as composer:
        loader = composer.config_loader
        space = read_space(params, ["b.c=0.5", "+a=7,8,9", "backbone=glob(resnet50*)", "x=1"], loader)
    assert space.fixed == ("b.c=0.5", "e=null", "f=3", "x=1")
    assert [(d.key, d.ends()) for d in space.dimensions] == [
        ("+a", ("7", "8", "9")),
        ("b.d", ("1", "2")),
        ("backbone", ("resnet50", "resnet50_v2")),
    ]
    assert space.values({"a": "8", "b.d": 2, "backbone": "resnet50"}) == ["+a=8", "b.d=2", "backbone=resnet50"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "hparams").glob("*.yaml")))
@pytest.mark.parametrize(
    "experiment", ["", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smoke", "hot_dog_tutorial"))]
)
def test_the_shipped_spaces_are_valid(name: str, experiment: str) -> None:
    overrides = [f"hparams={name}", *([f"experiment={experiment}"] if experiment else [])]
    with hydra() as composer:
        cfg = composer.compose_config("config", overrides, RunMode.MULTIRUN, from_shell=False)
        assert cfg.hydra.runtime.choices["hydra/sweeper"] == "optuna"
        space = read_space(cfg.hydra.sweeper.params, overrides, composer.config_loader)
        for job in space.probes():
            assert build_experiment(composer.compose_config("config", job, RunMode.RUN, from_shell=False))


# The study on disk ------------------------------------------------------------------------------------------------

SPACE = Space(("fixed=1",), (Dimension("x", low=0.0, high=1.0), Dimension("kind", ("a", "b"))))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "study.journal"


@pytest.fixture
def opened(journal: Path) -> Iterator[Callable[..., SearchStudy]]:
    studies: list[SearchStudy] = []

    def open_study(monitor: str = "val_accuracy", space: Space = SPACE, **settings: Any) -> SearchStudy:
        settings = {"sampler": "tpe", "seed": 0, "startup": 2, **settings}
        studies.append(SearchStudy(journal, monitor, space, **settings))
        return studies[-1]

    yield open_study
    for study in studies:
        study.close()


Opened = Callable[..., SearchStudy]


def height(params: Mapping[str, Any]) -> float:
    return 1 - (params["x"] - 0.3) ** 2 + (params["kind"] == "b")


def work(study: SearchStudy, n_trials: int, most: float = float("inf")) -> list[dict[str, Any]]:
    """Ask and tell until there are `n_trials`, or `most` have ended."""
    done: list[dict[str, Any]] = []
    while len(done) < most and (batch := study.ask(n_trials)):
        for trial in batch:
            study.tell(trial, height(trial.params))
            done.append(trial.params)
    return done


def states(study: SearchStudy) -> list[str]:
    return [trial.state.name for trial in study.trials()]


def test_an_interrupted_search_continues_identically(opened: Opened, journal: Path) -> None:
    whole = work(opened(), 9)
    journal.unlink()
    first = work(opened(), 9, most=4)
    rest = work(opened(), 9)
    assert (len(first), first + rest) == (4, whole)
    assert len({trial["x"] for trial in whole}) == 9


@pytest.mark.parametrize(
    ("last_act", "state"),
    [
        (lambda study, trial: None, "FAIL"),
        (lambda study, trial: study.study.enqueue_trial(trial.params), "FAIL"),  # another process began to retry it
        (lambda study, trial: trial.set_user_attr("pruned", "pruned after epoch 3"), "PRUNED"),
    ],
    ids=["killed", "killed during a retry", "pruned"],
)
def test_a_lost_trial_is_run_again_unless_it_was_pruned(opened: Opened, last_act: Any, state: str) -> None:
    killed = opened()
    work(killed, 5, most=2)
    (lost,) = killed.ask(5)
    last_act(killed, lost)
    killed.close()  # what a kill does
    again = opened()
    (next_one,) = again.ask(5)
    assert states(again) == ["COMPLETE", "COMPLETE", state, "RUNNING"]
    assert (next_one.params == lost.params) == (state == "FAIL")
    again.tell(next_one, 0.5)
    work(again, 5)
    assert len(states(again)) == (6 if state == "FAIL" else 5)


OTHER = """
import sys
from pathlib import Path
from tl_research.system.locks import Owner
owner = Owner(Path(sys.argv[1]))
print(owner.number, flush=True)
sys.stdin.read()
"""


def test_a_trial_of_a_running_process_is_left_to_it(opened: Opened, journal: Path) -> None:
    ours = opened()
    (trial,) = ours.ask(2)
    command = [sys.executable, "-c", OTHER, f"{journal}.owners"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None
        number = int(other.stdout.readline())
        trial.set_user_attr("owner", number)
        assert [ours.owner.lives(n) for n in (number, ours.owner.number, None)] == [True, True, False]
        assert len(ours.ask(2)) == 1  # one of two is under way elsewhere
        assert ours.ask(2) == []
        assert states(ours) == ["RUNNING", "RUNNING"]
        with pytest.raises(InputError) as refused:
            opened(fresh=True)
        assert str(refused.value) == f"fresh=true: other processes are at work on {journal}; wait for them, or end them"
        assert journal.exists()
        other.kill()
        other.wait()
    assert not ours.owner.lives(number)
    assert len(ours.ask(2)) == 1
    assert states(ours) == ["FAIL", "RUNNING", "RUNNING"]


def test_failures_count_until_the_command_is_repeated(opened: Opened) -> None:
    study = opened(parallel=2)
    for trial in study.ask(2):
        study.tell(trial, None, "out of memory")
    assert study.ask(2) == []
    assert study.best() is None
    study.close()
    assert len(opened(parallel=2).ask(2)) == 2


@pytest.mark.parametrize(
    ("monitor", "space", "message"),
    [
        ("val_loss", SPACE, "by another monitor"),
        ("val_accuracy", Space(("fixed=2",), SPACE.dimensions), "with other overrides"),
        ("val_accuracy", Space(SPACE.fixed, SPACE.dimensions[:1]), "in another space"),
    ],
)
def test_a_study_of_another_search_is_refused(opened: Opened, monitor: str, space: Space, message: str) -> None:
    opened().close()
    with pytest.raises(InputError, match=message):
        opened(monitor, space)


def test_order_and_launcher_do_not_change_the_search(opened: Opened) -> None:
    first = opened(space=Space(("a=1", "b=2"), SPACE.dimensions))
    work(first, 3)
    other = Space(("b=2", "missing_weights=random", "fresh=false", "a=1"), SPACE.dimensions[::-1])
    again = opened(space=other)
    assert again.ask(3) == []
    whole = opened(space=other, fresh=True)
    assert work(whole, 3) == [trial.params for trial in first.trials()]


def test_an_incomplete_line_does_not_spoil_the_journal(opened: Opened, journal: Path) -> None:
    work(opened(), 2)
    lines = journal.read_bytes()
    for cut in (1, 9, len(lines) - 5):
        journal.write_bytes(lines[:-cut])
        study = opened()
        work(study, 3)
        assert states(study).count("COMPLETE") == 3
        study.close()
        assert all(json.loads(line)["op_code"] >= 0 for line in journal.read_text().splitlines())


@pytest.mark.parametrize("content", [b"not a journal", b"a photograph\nof mine", b"{}\n", b"[1]\n{", b"\xff\xd8\n"])
def test_a_file_that_is_no_journal_is_refused_and_unchanged(opened: Opened, journal: Path, content: bytes) -> None:
    journal.parent.mkdir()
    journal.write_bytes(content)
    with pytest.raises(InputError, match=r"study\.journal: not a journal"):
        opened()
    assert journal.read_bytes() == content
    assert list(journal.parent.iterdir()) == [journal]


def test_the_monitor_determines_the_direction(opened: Opened) -> None:
    study = opened("val_loss", parallel=3)
    for trial, value in zip(study.ask(3), (0.5, 0.2, 0.2), strict=True):
        study.tell(trial, value)
    best = study.best()
    assert best is not None
    assert (best.number, best.value) == (1, 0.2)


def test_without_optuna_the_error_says_what_to_install(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'pip install "tl_research\[optuna\]"'):
        opened()


def test_the_plugin_imports_nothing_heavy() -> None:
    program = (
        "import sys, hydra_plugins.tl_sweeps.optuna_sweeper\n"
        "assert not {'optuna', 'tensorflow', 'keras', 'tl_research'} & set(sys.modules)\n"
        "import tl_research.training.pruning\nassert tl_research.training.pruning.current_trial() is None\n"
        "assert not {'optuna', 'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


# The sweeper, with a launcher that only computes ---------------------------------------------------------------------


class FakeLauncher:
    """Runs jobs by a function of their overrides: a number, or an exception."""

    def __init__(self, result: Callable[[dict[str, str]], Any]) -> None:
        self.result = result
        self.batches: list[int] = []
        self.jobs: list[list[str]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append(len(job_overrides))
        self.jobs += map(list, job_overrides)
        return [self._run(job) for job in job_overrides]

    def _run(self, job: Sequence[str]) -> JobReturn:
        value = self.result(values(job))
        failed = isinstance(value, Exception)
        returned = JobReturn(overrides=job, status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
        returned.return_value = value
        return returned


def values(job: Sequence[str]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in job)  # type: ignore[arg-type]


Sweep = Callable[..., FakeLauncher]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    def run(result: Callable[[dict[str, str]], Any], *overrides: str) -> FakeLauncher:
        launcher = FakeLauncher(result)
        monkeypatch.setattr(Plugins, "instantiate_launcher", lambda self, **_: launcher)
        given = ["hydra/sweeper=optuna", f"hydra.sweep.dir={tmp_path / 'sweep'}", *overrides]
        with hydra() as composer:
            cfg = composer.compose_config("config", given, RunMode.MULTIRUN, from_shell=False)
            context: Any = SimpleNamespace(config_loader=composer.config_loader)
            nothing: Any = None
            sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=nothing, config=cfg)
            sweeper.sweep(list(cfg.hydra.overrides.task))
        return launcher

    return run


MLP = ("head=mlp", "head.dropout=interval(0.1,0.7)", "hydra.sweeper.startup=3")


def by_dropout(job: dict[str, str]) -> float:
    return 1 - abs(float(job["head.dropout"]) - 0.4)


@pytest.mark.slow
def test_a_continued_search_writes_the_best_trial(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sweep(by_dropout, *MLP, "hydra.sweeper.n_trials=4", "seed=3")
    rest = sweep(by_dropout, *MLP, "hydra.sweeper.n_trials=12", "seed=3")
    assert (first.batches, rest.batches) == ([1] * 4, [1] * 8)
    capsys.readouterr()
    assert sweep(by_dropout, *MLP, "hydra.sweeper.n_trials=12", "seed=3").jobs == []
    comment, *content = (tmp_path / "sweep" / "best.yaml").read_text().splitlines()
    best = yaml.safe_load("\n".join(content))
    top = max(first.jobs + rest.jobs, key=lambda job: by_dropout(values(job)))
    assert best["overrides"] == [o for o in top if "hydra" not in o]
    assert best["value"] > 0.95
    assert comment.startswith("# python train.py head=mlp ")
    assert f"best of 12 trials (0 more pruned): val_accuracy {best['value']:.4g}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_learns_which_trial_it_is_and_stays_the_same_job(sweep: Sweep, tmp_path: Path) -> None:
    (job,) = sweep(by_dropout, *MLP, "hydra.sweeper.n_trials=1").jobs
    with hydra() as composer:
        master = composer.compose_config("config", ["hydra/sweeper=optuna"], RunMode.MULTIRUN, from_shell=False)
        cfg = composer.config_loader.load_sweep_config(master, job)
    assert cfg.hydra.job.env_set == {"TL_TRIAL": f"{tmp_path}/sweep/study.journal:search:0"}
    assert [o.partition("=")[0] for o in cfg.hydra.overrides.task] == ["head", "head.dropout"]
    assert "TL_TRIAL" not in cfg.hydra.job.override_dirname
    (unpruned,) = sweep(by_dropout, *MLP, "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none").jobs
    assert not any("TL_TRIAL" in override for override in unpruned)


@pytest.mark.slow
def test_failed_trials_are_never_best_and_are_replaced(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = iter([float("nan"), MemoryError("no room\nat all"), float("inf"), None, 0.75, 0.5])
    with pytest.raises(InputError, match="no trial was completed; the last says: MemoryError: no room"):
        sweep(lambda job: next(results), *MLP, "hydra.sweeper.n_trials=2")
    assert len(sweep(lambda job: next(results), *MLP, "hydra.sweeper.n_trials=4").jobs) == 4
    out = capsys.readouterr().out
    assert "trial 0: failed: its value was nan" in out
    assert "trial 1: failed: MemoryError: no room  head.dropout=" in out
    assert yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())["trial"] == 4


@pytest.mark.slow
def test_known_overrides_are_not_run_again(sweep: Sweep) -> None:
    choices = ("head=mlp", "head.units=choice(8,16)", "hydra.sweeper.n_trials=9", "hydra.sweeper.batch=3")
    launcher = sweep(lambda job: int(job["head.units"]), *choices)
    assert sorted(job[1] for job in launcher.jobs) == ["head.units=16", "head.units=8"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "there is nothing to search over"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: should be a whole number of at least 1"),
        (["hydra.sweeper.n_trials=true"], "hydra.sweeper.n_trials=true: should be"),
        (["hydra.sweeper.seed=-1"], "hydra.sweeper.seed=-1: should be a whole number of at least 0 or null"),
        (["hydra.sweeper.batch=0"], "hydra.sweeper.batch=0"),
        (["hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid: should be 'tpe' or 'random'"),
        (["hydra.sweeper.pruner=null"], "hydra.sweeper.pruner=null: should be 'median' or 'none'"),
        (["head.dropout=interval(0,2)"], "head.dropout=2.0: should be"),
        (["head.units=interval(1,2)"], "head.units="),
        (["head.droput=interval(0,1)"], "nearest: head.dropout"),
        (["head=choice(mlp,linear)", "head.units=1,2"], "head=linear has no units"),
        (["monitor=val_loss,val_accuracy"], "trials are compared by one"),
        (["monitor=test_accuracy", "seed=1,2"], "test images choose nothing"),
        (["optimizer=lbfgs", "seed=1,2"], "optimizer=lbfgs solves linear heads"),
    ],
)
def test_an_invalid_search_is_refused_before_any_file(
    sweep: Sweep, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        sweep(by_dropout, "head=mlp", *overrides)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_values_wrong_in_combination_are_failed_trials(sweep: Sweep) -> None:
    together = ("head=choice(linear,mlp)", "optimizer=choice(lbfgs,adam)", "hydra.sweeper.n_trials=10")

    def run(job: dict[str, str]) -> float:
        return float("nan") if "mlp" in job["head"] and "lbfgs" in job["optimizer"] else 0.5

    launcher = sweep(run, *together)
    assert {job[0] for job in launcher.jobs} == {"head=linear", "head=mlp"}


# A run that is a trial ----------------------------------------------------------------------------------------------


@pytest.fixture
def as_trial(opened: Opened, monkeypatch: pytest.MonkeyPatch, journal: Path) -> Callable[..., Trial | None]:
    """After two complete trials whose validation loss was 0.5 and 0.7: a third, as its job sees it."""

    def start(monitor: str = "val_loss") -> Trial | None:
        study = opened(monitor, parallel=3)
        first, second, third = study.ask(3)
        for trial, values in ((first, (0.9, 0.5)), (second, (0.8, 0.7))):
            for epoch, value in enumerate(values):
                trial.report(value, epoch)
            study.tell(trial, values[-1])
        monkeypatch.setenv(TRIAL_VARIABLE, f"{journal}:search:{third.number}")
        return current_trial()

    return start


@pytest.mark.parametrize(
    ("monitor", "epochs", "message"),
    [
        ("val_loss", [{"val_loss": 0.84, "loss": 7.0}, {"val_loss": 0.61}], "val_loss 0.61 is above the median of the"),
        ("val_macro_f1", [{"val_accuracy": 0.1, "val_loss": 0.2}], "val_accuracy 0.1 is below the median of the"),
        ("val_auroc", [{"val_accuracy": 0.1, "val_auroc": 0.2}], "val_auroc 0.2 is below the median of the"),
        ("val_loss", [{"val_loss": float("nan")}], "val_loss nan will not get better"),
    ],
)
def test_a_run_worse_than_the_median_is_pruned(
    as_trial: Callable[..., Trial], opened: Opened, monitor: str, epochs: list[dict[str, float]], message: str
) -> None:
    """By the metric of an epoch that is nearest to the monitor."""
    trial = as_trial(monitor)
    for epoch, logs in enumerate(epochs):
        trial.check()
        trial.report(epoch, logs)
    with pytest.raises(PrunedError) as pruned:
        trial.check()
    assert str(pruned.value).startswith(f"pruned after epoch {len(epochs) - 1}: {message}")
    recorded = opened(monitor).trials()[2]
    assert recorded.user_attrs["pruned"] == str(pruned.value)
    if len(epochs) == 2:
        assert recorded.intermediate_values == {0: 0.84, 1: 0.61}


def test_a_run_is_not_pruned_at_its_last_epoch(as_trial: Callable[..., Trial]) -> None:
    trial = as_trial()
    trial.report(0, {"val_loss": 9.0}, prune=False)
    trial.check()


def test_a_run_whose_trial_was_given_up_continues(as_trial: Callable[..., Trial], opened: Opened) -> None:
    """The search was killed and its successor gave the trial up; a restarted job finds its epochs reported."""
    trial, again = as_trial(), current_trial()
    assert again is not None
    trial.report(0, {"val_loss": 0.8})
    again.report(0, {"val_loss": 0.8})
    opened("val_loss").study.tell(2, state=optuna.trial.TrialState.FAIL)
    trial.report(1, {"val_loss": 9.0})
    trial.check()
    assert current_trial() is None


# The command itself ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, colours: Path) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "train.py"), "-m", "hydra.sweep.dir=found", "backbone=tiny"),
        *("backbone.image_size=32", "data=folder", f"data.root={colours}", "head=mlp", "optimizer=adam"),
        *("callbacks=none", "monitor=val_loss", "hydra.sweeper.startup=2"),
    ]


def run(command: Sequence[str], cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == status, result.stderr
    return result


def found(cwd: Path) -> list[Any]:
    study = optuna.load_study(study_name="search", storage=open_journal(cwd / "found" / "study.journal"))
    return list(study.get_trials(deepcopy=False))


SEARCH = ["hydra/sweeper=optuna", "optimizer.learning_rate=tag(log,interval(1e-7,1e-1))", "transfer.head.epochs=5"]


@pytest.mark.slow
def test_the_same_command_completes_a_killed_search(tmp_path: Path, command: list[str]) -> None:
    command += [*SEARCH, "hydra.sweeper.n_trials=5", "hydra.sweeper.pruner=none"]
    journal = tmp_path / "found" / "study.journal"
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **quiet) as process:
        for _ in range(3000):  # until the third trial is under way
            if journal.exists() and journal.read_text().count('"op_code":4,') == 3:
                break
            time.sleep(0.02)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    before = found(tmp_path)
    assert before[-1].state.name == "RUNNING"
    run(command, tmp_path)
    after = found(tmp_path)
    assert [t.params for t in after[: len(before)]] == [t.params for t in before]
    lost = len(before) - 1
    assert after[lost].state.name == "FAIL"
    assert after[lost + 1].params == after[lost].params
    assert [t.state.name for t in after].count("COMPLETE") == 5
    assert len(after) == 6


@pytest.mark.slow
def test_a_search_with_changed_images_is_not_continued(tmp_path: Path, command: list[str], colours: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(colours, photos)
    command += [f"data.root={photos}", *SEARCH, "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none"]
    run(command, tmp_path)
    assert "best of 2 trials" in run(command, tmp_path).stdout
    for split in ("train", "test"):
        for one, other in (("red", "x"), ("blue", "red"), ("x", "blue")):
            (photos / split / one).rename(photos / split / other)
    refused = run(command, tmp_path, status=2)
    assert refused.stderr.startswith(f"{tmp_path / 'found' / 'study.journal'}: images, weights or code have changed")
    run([*command, "fresh=true"], tmp_path)
    assert [trial.state.name for trial in found(tmp_path)] == ["COMPLETE"] * 2
    run(command, tmp_path)


@pytest.mark.slow
def test_a_search_ends_after_max_failures(tmp_path: Path, command: list[str]) -> None:
    command += [*SEARCH, "hydra.sweeper.n_trials=3", "hydra.launcher.max_failures=1", "hydra.launcher.timeout=0.05"]
    run(command, tmp_path, status=2)
    assert len(found(tmp_path)) == 1


@pytest.mark.slow
def test_a_bad_trial_is_pruned_and_is_no_failure(tmp_path: Path, command: list[str]) -> None:
    space = "optimizer.learning_rate=choice(0.1,0.05,0.03,1e-7,2e-7,3e-7,4e-7)"
    command += [SEARCH[0], space, "transfer.head.epochs=40", "hydra.sweeper.n_trials=12"]
    result = run(command, tmp_path)
    pruned = [trial for trial in found(tmp_path) if trial.state.name == "PRUNED" and trial.intermediate_values]
    assert pruned
    runs = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "found").glob("**/status.json")}
    ended = {folder: status for folder, status in runs.items() if status["state"] == "pruned"}
    assert len(ended) == len(pruned)
    epochs = [len((folder / "history.csv").read_text().splitlines()) - 1 for folder in ended]
    assert sorted(epochs) == sorted(len(trial.intermediate_values) for trial in pruned)
    assert max(epochs) < 40
    assert not any((folder / "model.keras").exists() for folder in ended)
    for status in ended.values():
        assert status["reason"].startswith("pruned after epoch ")
        assert "is above the median of the trials so far" in status["reason"]
        assert status["reason"] in result.stdout
    assert {status["state"] for status in runs.values()} == {"done", "pruned"}


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path, command: list[str]) -> None:
    """Each process has its own folder for runs."""
    command += [*SEARCH, "hydra.sweeper.n_trials=6", "hydra.sweeper.study=found/study.journal"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*command, f"hydra.sweep.dir={d}"], cwd=tmp_path, **pipes) for d in ("one", "two")]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    trials = [[line.split(":")[0] for line in text.splitlines() if re.match("trial [0-9]", line)] for text in printed]
    assert sorted(itertools.chain(*trials)) == [f"trial {number}" for number in range(6)]
    assert len(found(tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "finetune"])
def test_the_published_searches_run(tmp_path: Path, colours: Path, name: str) -> None:
    base = [sys.executable, str(ROOT / "train.py"), "-m", "hydra.sweep.dir=found", f"hparams={name}"]
    options = ["backbone=tiny", "data=folder", f"data.root={colours}", "transfer.head.epochs=2", "callbacks=none"]
    assert "best of 2 trials" in run([*base, *options, "hydra.sweeper.n_trials=2"], tmp_path).stdout
    line = (tmp_path / "found" / "best.yaml").read_text().splitlines()[0].removeprefix("# python train.py ")
    run([sys.executable, str(ROOT / "train.py"), *line.split()], tmp_path)
