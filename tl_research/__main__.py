"""Train models, use finished runs, and look after the store of features: python -m tl_research COMMAND.

Example: python -m tl_research predict outputs/2026-01-31/12-00-00-0 PHOTOS -o answers.csv
"""

from __future__ import annotations

from typing import Any, NoReturn

import typer

from tl_research.commands.arguments import PASS_ON
from tl_research.commands.blocks import blocks_command
from tl_research.commands.card import card_command
from tl_research.commands.check import check_command
from tl_research.commands.compare import compare_command
from tl_research.commands.ensemble import ensemble_command
from tl_research.commands.evaluate import evaluate_command
from tl_research.commands.explain import explain_command
from tl_research.commands.export import export_command
from tl_research.commands.extract import extract_command
from tl_research.commands.features import features_app
from tl_research.commands.leaderboard import leaderboard_command
from tl_research.commands.lr_find import lr_find_command
from tl_research.commands.predict import predict_command
from tl_research.commands.report import report_command
from tl_research.commands.serve import serve_command
from tl_research.commands.train import train_command
from tl_research.config.exit_status import BAD_INPUT, INTERRUPTED, run_reporting_errors
from tl_research.errors import InputError
from tl_research.system.process import exit_now

UsageError: Any = typer.BadParameter.__mro__[1]  # Typer exports its heir alone

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

for name, command in (("train", train_command), ("extract", extract_command)):  # Hydra answers their --help
    app.command(name, context_settings={**PASS_ON, "help_option_names": []}, add_help_option=False)(command)
app.command("predict")(predict_command)
app.command("explain")(explain_command)
app.command("export")(export_command)
app.command("serve")(serve_command)
app.command("evaluate", context_settings=PASS_ON)(evaluate_command)
app.command("blocks", context_settings=PASS_ON)(blocks_command)
app.command("lr_find", context_settings=PASS_ON)(lr_find_command)
app.command("check", context_settings=PASS_ON)(check_command)
app.command("compare")(compare_command)
app.command("ensemble")(ensemble_command)
app.command("leaderboard")(leaderboard_command)
app.command("report")(report_command)
app.command("card")(card_command)
app.add_typer(features_app, name="features")


def main() -> NoReturn:
    """Run a command; see `run_reporting_errors` for the exit status."""
    exit_now(run_reporting_errors(_run))


def _run() -> int:
    """Run the command that was asked for; a usage error becomes one line, where Typer would draw a box."""
    try:
        status: int | None = app(standalone_mode=False)
    except UsageError as error:
        if not (message := error.format_message().strip()):  # the help was shown
            return BAD_INPUT
        path = error.ctx.command_path if error.ctx else "python -m tl_research"
        raise InputError(f"{' '.join(message.split()).rstrip('.')}; {path} --help lists what there is") from None
    if status == INTERRUPTED:  # Typer has caught the interruption and says nothing
        raise KeyboardInterrupt
    return status or 0


if __name__ == "__main__":
    main()
