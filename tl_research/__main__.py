"""python -m tl_research COMMAND: what is done with runs. Training is `python train.py`, or `train` here."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from tl_research.errors import InputError
from tl_research.runs.run import Run, as_csv
from tl_research.system.console import show, show_error
from tl_research.system.files import write_atomically

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, such as outputs/2026-01-31/12-00-00-0")
]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train: the same as `python train.py [OVERRIDES...]`, wherever the package is installed."""
    _enter("train", context.args)


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, add_help_option=False)
def extract(context: typer.Context) -> None:
    """Compute features into the store and train nothing: extract [-m shard=0/4,1/4,2/4,3/4] [OVERRIDES...]."""
    _enter("extract", context.args)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Files, or folders of images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the CSV here; default: print it")] = None,
) -> None:
    """Classes and probabilities for images, as CSV. A file that cannot be read is a row with the reason."""
    from tl_research.backend.start import start_backend
    from tl_research.evaluation.predict import images_in, predict_images

    opened = _opened(run)
    if output is not None and not output.expanduser().absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    paths = images_in(path.expanduser() for path in images)
    start_backend()
    header, rows = predict_images(opened, paths)
    text = as_csv(header, rows)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output.expanduser(), text)
    if all(row[-1] for row in rows):
        raise typer.Exit(1)  # not one could be read; each row says why


@app.command(context_settings=_PASS_ON)
def evaluate(context: typer.Context, run: RunArgument) -> None:
    """Metrics of a run on other data: evaluate RUN data=folder data.root=PHOTOS. Prints JSON."""
    import json

    from tl_research import compose
    from tl_research.backend.start import start_backend
    from tl_research.evaluation.predict import evaluate_on

    opened = _opened(run)
    if not any(argument.startswith("data=") for argument in context.args):
        raise InputError("evaluate: say on which data, such as data=folder data.root=PHOTOS")
    source = compose(context.args).data
    source.preflight()
    start_backend()
    metrics = evaluate_on(opened, source.load())
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


@app.command(context_settings=_PASS_ON)
def blocks(context: typer.Context) -> None:
    """A backbone's blocks as `unfreeze` counts them, and what each costs: blocks [backbone=resnet50] [OVERRIDES...]."""
    import shlex
    from dataclasses import replace

    from tl_research import compose
    from tl_research.backend.start import start_backend
    from tl_research.models.backbone import Saved
    from tl_research.models.summary import show_blocks

    recipe = compose(context.args).backbone
    if not isinstance(recipe, Saved):
        recipe = replace(recipe, weights=None)  # the structure is the same, and nothing need be there
    recipe.preflight()
    start_backend()
    show_blocks(recipe.name, recipe.build(), shlex.join(["python", "train.py", *context.args]))


@app.command("lr_find", context_settings=_PASS_ON)
def lr_find(
    context: typer.Context,
    stage: Annotated[str | None, typer.Option(help="Which; default: the first that trains the backbone")] = None,
    steps: Annotated[int, typer.Option(help="Updates, at rates from 1e-7 to 10")] = 100,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: outputs/lr_find/...")] = None,
) -> None:
    """A stage's learning rate by a range test, which touches no run: lr_find [transfer=finetune] [OVERRIDES...]."""
    import signal

    from tl_research import compose
    from tl_research.training import lr_range_test as test

    if several := {"-m", "--multirun"} & set(context.args):
        raise InputError(f"{several.pop()}: lr_find tests one configuration; leave it out, and give single values")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder goes
    experiment = compose(context.args)
    folder = test.destination(output)
    test.report(experiment, context.args, *test.find(experiment, stage, steps), folder)


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, such as outputs/sweeps/...")],
) -> None:
    """Ranks the runs below a folder by their validation metric; writes leaderboard.csv and leaderboard.md there."""
    from tl_research.reports.leaderboard import Leaderboard, collect
    from tl_research.reports.summary import show_leaderboard

    folder = folder.expanduser()
    board = Leaderboard.of(collect(folder))
    board.write(folder)
    show_leaderboard(board.monitor, *board.table(), board.failures(), folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, or one run's directory")],
) -> None:
    """One page of the runs below a folder, report.html, that opens offline: ranks, curves, costs, effects, mistakes."""
    from tl_research.reports import html_report as pages

    show(pages.write_report(folder.expanduser()))


def _enter(command: Literal["train", "extract"], overrides: list[str]) -> NoReturn:
    """Through the door of `python train.py`, which reads the command line itself."""
    from tl_research.config import main as door
    from tl_research.system.process import exit_now

    sys.argv = ["train.py", *overrides]
    exit_now(door(command))


features = typer.Typer(no_args_is_help=True, help="The store of features: what it holds, whether it is whole.")
app.add_typer(features, name="features")


def _root(overrides: list[str]) -> Path:
    from tl_research import compose

    root = compose(overrides).features.root
    if root is None:
        raise InputError("features.store=null: there is no store to look at; give a folder")
    return root


@features.command("list", context_settings=_PASS_ON)
def list_(context: typer.Context) -> None:
    """What the store holds, the most recently used last: features list [features.store=FOLDER]."""
    from tl_research.features.store_admin import list_entries
    from tl_research.features.summary import show_store

    root = _root(context.args)
    show_store(root, list_entries(root))


@features.command(context_settings=_PASS_ON)
def verify(context: typer.Context) -> None:
    """Reads all rows and tells the damaged, which no run would take; exit status 1 if there are any."""
    from tl_research.features.store_admin import list_entries as held
    from tl_research.system.progress import track

    damaged = 0
    stocks = held(_root(context.args))
    for entry in track(stocks, "verifying", total=len(stocks)):
        for path, positions in entry.damaged().items():
            damaged += len(positions)
            show(f"{path}: {len(positions)} damaged row(s)")
    rows = sum(entry.num_rows for entry in stocks)
    show(f"{rows:,} rows, {damaged:,} damaged" + ("; runs compute them anew" if damaged else ""))
    if damaged:
        raise typer.Exit(1)


@features.command(context_settings=_PASS_ON)
def prune(
    context: typer.Context,
    max_gb: Annotated[float | None, typer.Option(min=0, help="What may stay; default: features.max_gb")] = None,
) -> None:
    """Removes the least recently used features until the store is no larger than wanted."""
    from tl_research import compose
    from tl_research.features.store_admin import prune_store

    wanted = compose(context.args).features.max_gb if max_gb is None else max_gb
    if wanted is None:
        raise InputError("features.max_gb=null: say how much may stay, such as --max-gb 5")
    freed = prune_store(_root(context.args), wanted * 1e9)
    show(f"{freed / 1e6:,.1f} MB removed")


def _opened(path: Path) -> Run:
    """A run that has a model; a word on standard error if it did not end as it should."""
    run = Run.open(path)
    run.class_names()
    state = run.status["state"]
    if state != "done":
        show_error(f"{path}: the run's status is '{state}'")
    return run


def main() -> None:
    """Runs a command. Bad input is one line on standard error and exit status 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        app()
    except InputError as error:
        show_error(error)
        sys.exit(2)
    except OSError as error:
        show_error(f"{error.filename or 'output'}: {error.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        show_error("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
