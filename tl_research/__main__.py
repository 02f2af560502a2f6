"""python -m tl_research COMMAND: what is done with runs. Training is `python train.py`, or `train` here."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tl_research.errors import InputError
from tl_research.run import Run, as_csv, write_atomically

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, such as outputs/2026-01-31/12-00-00-0")
]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train: the same as `python train.py [OVERRIDES...]`, wherever the package is installed."""
    from tl_research.configure import main as door
    from tl_research.runtime import leave

    sys.argv = ["train.py", *context.args]
    leave(door())


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Files, or folders of images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the CSV here; default: print it")] = None,
) -> None:
    """Classes and probabilities for images, as CSV. A file that cannot be read is a row with the reason."""
    from tl_research import predict as answers
    from tl_research import runtime

    opened = _opened(run)
    if output is not None and not output.expanduser().absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    paths = answers.images_in(path.expanduser() for path in images)
    runtime.start()
    header, rows = answers.predict(opened, paths)
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

    from tl_research import compose, predict, runtime

    opened = _opened(run)
    if not any(argument.startswith("data=") for argument in context.args):
        raise InputError("evaluate: say on which data, such as data=folder data.root=PHOTOS")
    source = compose(context.args).data
    source.preflight()
    runtime.start()
    metrics = predict.evaluate(opened, source.load())
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


def _opened(path: Path) -> Run:
    """A run that has a model; a word on standard error if it did not end as it should."""
    run = Run.open(path)
    run.class_names()
    state = run.status["state"]
    if state != "done":
        print(f"{path}: the run's status is '{state}'", file=sys.stderr)  # noqa: T201
    return run


def main() -> None:
    """Runs a command. Bad input is one line on standard error and exit status 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        app()
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except OSError as error:
        print(f"{error.filename or 'output'}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
