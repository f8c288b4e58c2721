"""`apr`: one thin module per verb. Nothing heavy is imported before a verb is chosen."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator

import typer
from typer.models import CommandInfo, TyperInfo

from apr import __version__
from apr.cli import VERBS
from apr.cli.options import with_flags
from apr.common.errors import AprError
from apr.common.foreign import printable

app = typer.Typer(
    name="apr",
    help="Make code language models better, smaller and faster, and prove it with honest scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"apr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: bool = typer.Option(
        False, "--debug", help="Show tracebacks instead of one-line errors."
    ),
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if debug:
        os.environ["APR_DEBUG"] = "1"


def _verbs(app: typer.Typer) -> list[CommandInfo | TyperInfo]:
    return [*app.registered_commands, *app.registered_groups]


def _commands(app: typer.Typer | None) -> Iterator[CommandInfo]:
    assert app is not None
    yield from app.registered_commands
    for group in app.registered_groups:
        yield from _commands(group.typer_instance)


for _panel, _names in VERBS.items():
    for _name in _names:
        importlib.import_module(f"apr.cli.{_name}").register(app)
    for _verb in _verbs(app):
        if not isinstance(_verb.rich_help_panel, str):
            _verb.rich_help_panel = _panel
for _command in _commands(app):
    if _command.callback is not None:
        _command.callback = with_flags(_command.callback)


def main() -> None:
    """Run the command line; known failures become one line on stderr and exit code 1 or 2."""
    # Half a second of every command that imports torch: its million objects are neither garbage
    # while they are made nor worth looking through at the end.
    # A character that the terminal has no code for is shown as its number; a byte of the input that
    # is no text is named where it is used.
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    try:
        app()
    except AprError as error:
        if os.environ.get("APR_DEBUG"):
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            _fail("interrupted", 130)
        raise
    except BrokenPipeError:
        # The reader of our output went away (`apr ... | head`): no complaint, and no second one
        # from the interpreter when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, exit_code: int) -> None:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    one_line = printable(" ".join(message.split()))
    print(f"{red}apr: {one_line}{plain}", file=sys.stderr)
    sys.exit(exit_code)
