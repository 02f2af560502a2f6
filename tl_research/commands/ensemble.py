"""`ensemble`: the mean of a sweep's best runs, as one run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from tl_research.errors import InputError
from tl_research.system.console import only_warning, show, show_error


def ensemble_command(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A folder with runs, such as that of a sweep")],
    best: Annotated[
        int | None, typer.Option("--best", help="How many runs to join; default: 5, or all of fewer")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run directory to make; default: SWEEP/ensemble_of_K")
    ] = None,
) -> None:
    """Join the runs that are best by validation to one that answers with their mean probability, and evaluate it.

    Example: python -m tl_research ensemble outputs/sweeps --best 3
    """
    from tl_research.backend.start import start_backend
    from tl_research.config.resume import source_of
    from tl_research.evaluation.ensemble import check_data, check_members, write_ensemble
    from tl_research.experiment.outcome import record_outcome
    from tl_research.experiment.summary import show_metrics
    from tl_research.reports.best_runs import best_runs
    from tl_research.reports.card import CARD, write_card
    from tl_research.runs.run import Run

    if best is not None and best < 2:
        raise InputError(f"--best {best}: an ensemble needs at least two runs")
    members, passed = best_runs(sweep.expanduser(), best)
    for line in passed:
        show_error(line)
    check_members(members)
    directory = (output or sweep / f"ensemble_of_{len(members)}").expanduser().absolute()
    if (directory / "status.json").exists():
        raise InputError(f"--output {directory}: there is a run in it already; name another folder")
    source = source_of(members[0])
    source.preflight()
    data = source.load()
    check_data(members[0], data)
    with closing(Run.claim(directory)) as run, record_outcome(run):
        threads = start_backend()
        logits = write_ensemble(run, members, data, threads)
        with only_warning(CARD):
            write_card(run)
        show(f"the mean probability of {len(members)} runs:", *(f"  {member.directory}" for member in members))
        show_metrics(run.metrics, run.directory, 0, data, logits)
