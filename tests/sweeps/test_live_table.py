"""The display of a running sweep: counts, time left, and a line for each job that has ended."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tl_research.sweeps.job_process import Task
from tl_research.sweeps.live_table import MOST_ROWS, LiveTable
from tl_research.sweeps.process_pool import Job, Outcome
from tl_research.system import console

STATES = ["done", "kept", "failed", "skipped", "pruned", "interrupted", "running", "waiting"]


def never() -> Task:
    raise AssertionError("a view asks for no task")


def outcome(
    state: str, name: str = "seed=0", seconds: float = 0.0, reason: str | None = None, value: float = float("nan")
) -> Outcome:
    """A job in that state; one that runs has been running for so many seconds."""
    began = time.monotonic() - (seconds if state == "running" else 0)
    ended = 0.0 if state in ("running", "waiting") else seconds
    return Outcome(Job(name, never), state, reason, value, began, ended)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """`screen(terminal)`: what is shown, on a terminal or in a file."""

    def shown(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        screen = Console(file=text, force_terminal=terminal, width=100, soft_wrap=True, highlight=False)
        monkeypatch.setattr(console, "progress_console", screen)
        return text

    return shown


def test_the_summary_counts_each_state_that_occurs() -> None:
    view = LiveTable([outcome("done", seconds=10), outcome("done", seconds=20), outcome("failed"), outcome("running"),
                      outcome("waiting"), outcome("waiting")], 1)  # fmt: skip
    assert view.summary() == "2 done, 1 failed, 1 running, 2 waiting; 0 s so far, about 30 s left"
    assert LiveTable([outcome("waiting")], 1).summary() == "1 waiting; 0 s so far"
    assert LiveTable([], 1).summary() == "; 0 s so far"
    assert (
        LiveTable([outcome(state) for state in ("skipped", "pruned", "interrupted")], 2)
        .summary()
        .startswith("1 skipped, 1 pruned, 1 interrupted; ")
    )


def test_time_left_is_estimated_from_the_mean_of_ended_jobs() -> None:
    assert LiveTable([outcome("waiting"), outcome("running", seconds=9)], 1).seconds_left() is None
    view = LiveTable([outcome("done", seconds=10), outcome("running", seconds=4), outcome("waiting")], 1)
    assert view.seconds_left() == pytest.approx(6 + 10, abs=0.5)
    view.n_jobs = 2
    assert view.seconds_left() == pytest.approx((6 + 10) / 2, abs=0.5)
    late = LiveTable([outcome("done", seconds=10), outcome("running", seconds=99), outcome("waiting")], 1)
    assert late.seconds_left() == pytest.approx(10, abs=0.5), "one that takes long does not make it negative"
    assert LiveTable([outcome("done", seconds=10)] * 3, 4).seconds_left() == 0


def test_idle_slots_do_not_shorten_the_time_left() -> None:
    view = LiveTable([outcome("done", seconds=10)] * 8 + [outcome("running", seconds=0)], 8)
    assert view.seconds_left() == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("state", ["skipped", "failed"])
def test_skipped_jobs_do_not_count_for_the_time_left(state: str) -> None:
    """A job without weights ends in a tenth of a second; those that do their work do not."""
    view = LiveTable([outcome(state, seconds=0.1)] * 9 + [outcome("done", seconds=60), outcome("waiting")], 1)
    left = view.seconds_left()
    assert left is not None
    assert 0 <= left <= 60


@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.floats(0, 1e4)), max_size=30),
    st.integers(1, 40),
)
def test_any_jobs_have_a_summary_and_no_negative_time_left(jobs: list[tuple[str, float]], n_jobs: int) -> None:
    view = LiveTable([outcome(state, seconds=seconds) for state, seconds in jobs], n_jobs)
    left = view.seconds_left()
    ended = [seconds for state, seconds in jobs if state not in ("running", "waiting", "kept")]
    assert (left is None) == (not ended)
    if left is not None:
        unfinished = sum(state in ("running", "waiting") for state, _ in jobs)
        assert 0 <= left <= sum(ended) / len(ended) * unfinished + 1e-6
    counted = [part.split(" ") for part in view.summary().partition(";")[0].split(", ") if part]
    assert {state: int(count) for count, state in counted} == {s: [j[0] for j in jobs].count(s) for s, _ in jobs}


def test_without_a_terminal_each_ended_job_is_one_line(
    screen: Callable[[bool], io.StringIO],
) -> None:
    shown = screen(False)
    jobs = [
        outcome("done", "backbone=tiny seed=0", 12.34, value=0.87654),
        outcome("failed", "backbone=[a,b] seed=1", 1.0, "it broke"),
        outcome("waiting", "seed=2"),
        outcome("kept", "seed=3", 0.6, value=0.5),
    ]
    with LiveTable(jobs, 1) as view:
        for job in (jobs[0], jobs[1], jobs[3]):
            view.refresh()
            view.ended(job)
    assert shown.getvalue().splitlines() == [
        "[3/4] done        backbone=tiny seed=0  0.8765  12.3 s",
        "[3/4] failed      backbone=[a,b] seed=1  1.0 s  it broke",
        "[3/4] kept        seed=3  0.5",
    ]


def test_trials_of_a_search_are_counted_on(screen: Callable[[bool], io.StringIO]) -> None:
    shown = screen(False)
    job = outcome("done", "lr=1", 1.0, value=0.5)
    LiveTable([job], 1, before=2, total=20, unit=" features computed").ended(job)
    assert shown.getvalue().splitlines() == ["[3/20] done        lr=1  0.5 features computed  1.0 s"]


def test_a_reason_of_many_lines_or_words_stays_a_line(screen: Callable[[bool], io.StringIO]) -> None:
    shown = screen(False)
    job = outcome(
        "failed", "seed=0", 1.0, "a reason " + 40 * "of many words " + "with [bold]marks[/bold] and\na second line"
    )
    LiveTable([job], 1).ended(job)
    assert len(shown.getvalue().splitlines()) == 1
    assert "with [bold]marks[/bold] and" in shown.getvalue()


def test_on_a_terminal_a_table_shows_jobs_and_their_progress(screen: Callable[[bool], io.StringIO]) -> None:
    shown = screen(True)
    jobs = [outcome("done", "seed=0", 5.0), outcome("running", "seed=1 head=[x]", 7.2), outcome("waiting", "seed=2")]
    jobs[1].doing = "features 12/36"
    with LiveTable(jobs, 1) as view:
        view.refresh()
    text = shown.getvalue()
    (line,) = {line.strip() for line in text.splitlines() if "seed=1" in line}
    assert line.split() == ["seed=1", "head=[x]", "7", "features", "12/36"]
    for expected in ("running", "seconds", "doing", "1 done, 1 running, 1 waiting; 0 s so far, about"):
        assert expected in text
    assert "seed=2" not in text, "what waits is only counted"
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h")), "and it is taken away in the end"


def test_the_table_does_not_outgrow_the_screen_and_names_are_cut(screen: Callable[[bool], io.StringIO]) -> None:
    shown = screen(True)
    jobs = [outcome("running", f"number={number} " + 30 * "name ") for number in range(3 * MOST_ROWS)]
    with LiveTable(jobs, len(jobs)):
        pass
    text = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", shown.getvalue())
    lines = text.replace("\r", "\n").splitlines()
    assert {line.split()[0] for line in lines if "number=" in line} == {f"number={n}" for n in range(MOST_ROWS)}
    assert f"{len(jobs)} running" in text
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", ["data.only=[a,b]", "x=[/b]", "x=[bold]", "x=[red]y[/red]", "x=\\[a"])
def test_names_with_brackets_are_shown_literally(screen: Callable[[bool], io.StringIO], name: str) -> None:
    shown = screen(True)
    job = outcome("running", name)
    job.doing = "features [a]"
    with LiveTable([job], 1):
        pass
    assert name in shown.getvalue()
    assert "features [a]" in shown.getvalue()
