"""Train models, use finished runs, and look after the store of features: python -m tl_research COMMAND.

Example: python -m tl_research predict outputs/2026-01-31/12-00-00-0 PHOTOS -o answers.csv
"""

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
    Path, typer.Argument(metavar="RUN", help="The run directory, such as outputs/2026-01-31/12-00-00-0")
]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a model: the same as `python train.py`, from any folder.

    Example: python -m tl_research train backbone=resnet50 data=folder data.root=PHOTOS
    """
    _enter("train", context.args)


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, add_help_option=False)
def extract(context: typer.Context) -> None:
    """Compute the features of all images and store them; train nothing.

    Example: python -m tl_research extract -m shard=0/4,1/4,2/4,3/4 data=folder data.root=PHOTOS
    """
    _enter("extract", context.args)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the CSV here; default: print it")] = None,
) -> None:
    """Predict the class of each image, with probabilities, as CSV. An unreadable file gives a row with the reason.

    Example: python -m tl_research predict outputs/2026-01-31/12-00-00-0 PHOTOS -o answers.csv
    """
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
    """Evaluate a run on the test images of another data set, which overrides name; print the metrics as JSON.

    Example: python -m tl_research evaluate outputs/2026-01-31/12-00-00-0 data=folder data.root=PHOTOS
    """
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
    """List the blocks of a backbone as `unfreeze` counts them, with the parameters and compute of each.

    Example: python -m tl_research blocks backbone=resnet50
    """
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
    stage: Annotated[
        str | None, typer.Option(help="Stage to test; default: the first that trains the backbone")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of updates, at least 20; rates go from 1e-7 to 10")] = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; default: outputs/lr_find/...")
    ] = None,
) -> None:
    """Find a learning rate for one stage by a range test. No run is changed.

    Example: python -m tl_research lr_find transfer=finetune
    """
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
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, such as that of a sweep")],
) -> None:
    """Rank all runs in a folder by their validation metric; write leaderboard.csv and leaderboard.md there.

    Example: python -m tl_research leaderboard outputs/sweeps
    """
    from tl_research.reports.leaderboard import Leaderboard, collect
    from tl_research.reports.summary import show_leaderboard

    folder = folder.expanduser()
    board = Leaderboard.of(collect(folder))
    board.write(folder)
    show_leaderboard(board.monitor, *board.table(), board.failures(), folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, or the directory of one run")],
) -> None:
    """Write report.html, one page that opens offline: leaderboard, curves, costs, effects of keys, worst mistakes.

    Example: python -m tl_research report outputs/sweeps
    """
    from tl_research.reports import html_report as pages

    show(pages.write_report(folder.expanduser()))


def _enter(command: Literal["train", "extract"], overrides: list[str]) -> NoReturn:
    """Hand over to the entry of `python train.py`, which reads the command line itself."""
    from tl_research.config.entry import main as door
    from tl_research.system.process import exit_now

    sys.argv = ["train.py", *overrides]
    exit_now(door(command))


features = typer.Typer(no_args_is_help=True, help="Look after the store of features: list, verify, prune.")
app.add_typer(features, name="features")


def _root(overrides: list[str]) -> Path:
    from tl_research import compose

    root = compose(overrides).features.root
    if root is None:
        raise InputError("features.store=null: there is no store to look at; give a folder")
    return root


@features.command("list", context_settings=_PASS_ON)
def list_(context: typer.Context) -> None:
    """List what the store holds, the most recently used last.

    Example: python -m tl_research features list features.store=FOLDER
    """
    from tl_research.features.store_admin import list_entries
    from tl_research.features.summary import show_store

    root = _root(context.args)
    show_store(root, list_entries(root))


@features.command(context_settings=_PASS_ON)
def verify(context: typer.Context) -> None:
    """Read all rows and count the damaged ones, which runs compute again. The exit status is 1 if there are any.

    Example: python -m tl_research features verify
    """
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
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Gigabytes that may stay; default: features.max_gb")
    ] = None,
) -> None:
    """Remove the least recently used features until the store is small enough.

    Example: python -m tl_research features prune --max-gb 5
    """
    from tl_research import compose
    from tl_research.features.store_admin import prune_store

    wanted = compose(context.args).features.max_gb if max_gb is None else max_gb
    if wanted is None:
        raise InputError("features.max_gb=null: say how much may stay, such as --max-gb 5")
    freed = prune_store(_root(context.args), wanted * 1e9)
    show(f"{freed / 1e6:,.1f} MB removed")


def _opened(path: Path) -> Run:
    """Open a run that has a model; warn on standard error if it is not done."""
    run = Run.open(path)
    run.class_names()
    state = run.status["state"]
    if state != "done":
        show_error(f"{path}: the run's status is '{state}'")
    return run


def main() -> None:
    """Run a command. Bad input gives one line on standard error and exit status 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", r"tl_research\.", FutureWarning)  # an old name is in use
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
