"""The `hydistill` program: its commands, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hydistill_edge import __version__
from hydistill_edge.cli import (
    build,
    bundle,
    demo,
    devices,
    doctor,
    evaluate,
    init,
    inspect,
    keys,
    profile,
    recipe,
    review,
    verify,
)
from hydistill_edge.cli.console import print_error
from hydistill_edge.errors import Failure, UsageError, describe

STOPPED = 130
"""Exit code of a command that was stopped by Ctrl-C, as shells have it."""

app = typer.Typer(
    name="hydistill",
    help="Build edge-ready models from a teacher, without its training data.\n\n"
    "Exit codes: 0 no gate said no, 1 a gate said no, 2 wrong usage or recipe, "
    "3 something is missing here, 4 a fault of ours.\n\n"
    "Example: hydistill demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(init.init)
app.command()(inspect.inspect)
app.command()(build.build)
app.command()(evaluate.evaluate)
app.command()(verify.verify)
app.command()(profile.profile)
app.command()(review.review)
app.add_typer(keys.app, name="keys")
app.add_typer(bundle.app, name="bundle")
app.add_typer(devices.app, name="devices")
app.command()(doctor.doctor)
app.add_typer(recipe.app, name="recipe")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def run(arguments: list[str]) -> int:
    """Run one command line; every error becomes one message on stderr and an exit code."""
    # Commands are functions that anyone may call; what they raise is translated here alone.
    debug, as_json = "--debug" in arguments, "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(args=arguments, prog_name="hydistill", standalone_mode=False)
        if code == STOPPED:  # what typer makes of Ctrl-C
            return _stopped()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        return 0  # the reader of our output has seen enough
    except Exception as error:
        if type(error).__name__ == "Abort":
            return _stopped()
        failure = describe(error)
        if hasattr(error, "format_message"):  # click's usage errors
            failure = Failure(type(error).__name__, error.format_message(), UsageError.exit_code)
        return _fail(error, failure, debug, as_json)


def _stopped() -> int:
    sys.stderr.write("stopped; run the same command again to go on\n")
    return STOPPED


def _fail(error: Exception, failure: Failure, debug: bool, as_json: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    if failure.message:  # no command at all is answered by the help, which stands there already
        print_error(failure.message, kind=failure.kind, code=failure.exit_code, as_json=as_json)
    return failure.exit_code
