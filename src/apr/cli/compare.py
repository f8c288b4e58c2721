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
    show: str = typer.Option(
        "", help="Show what both wrote for these tasks: fixed, broken or flaky."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.eval_output import page, print_table
    from apr.cli.options import one_of
    from apr.eval.history.compare import SHOWN, comparison_table, shown_tasks
    from apr.eval.history.compare import compare as compared
    from apr.eval.history.read import read_run

    one_of("show", show or SHOWN[0], dict.fromkeys(SHOWN))
    a, b = read_run(run_a), read_run(run_b)
    found = compared(a, b)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    if show:
        page(shown_tasks(found, a, b, show) or f"no task is {show}")
    print_table(comparison_table(found))
