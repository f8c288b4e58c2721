"""`apr compare`: two evaluations, task by task."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("compare", help="Compare two evaluations task by task.")(compare)


def compare(
    run_a: Path = typer.Argument(help="A run's folder, or a file with a result (--json)."),
    run_b: Path = typer.Argument(help="The other."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.options import print_table
    from apr.eval.compare import compare as compared
    from apr.eval.compare import comparison_table
    from apr.eval.history import read_run

    found = compared(read_run(run_a), read_run(run_b))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print_table(comparison_table(found))
