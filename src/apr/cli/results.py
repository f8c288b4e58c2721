"""`apr results`: the runs on this disk, and what went wrong in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("results", help="List finished evaluations, or show one's failures.")(results)


def results(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or one run. [default: runs]")
    ] = None,
    benchmark: str = typer.Option("", help="Only runs of benchmarks with this in their name."),
    model: str = typer.Option("", help="Only runs of models with this in their name."),
    failed: bool = typer.Option(
        False, "--failed", help="Of one run: every failure with program and reason."
    ),
    task: str = typer.Option("", help="Of one run: this task's samples, passed or not."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.options import page, print_table
    from apr.errors import UsageError
    from apr.eval.history import failures, find_runs, read_run
    from apr.eval.history_table import history_table, shown_failure

    chosen = folders or [Path("runs")]
    if failed or task:
        if len(chosen) != 1:
            raise UsageError("--failed and --task show one run", "apr results RUN --failed")
        found = failures(read_run(chosen[0]), task)
        if as_json:
            print(json.dumps([vars(failure) for failure in found]))
        else:
            page("\n".join(map(shown_failure, found)) or "every sample passed")
        return
    runs = find_runs(chosen, benchmark, model)
    if as_json:
        rows = [
            {"folder": str(run.path), "finished": run.finished}
            | {k: v for k, v in run.results.items() if k != "per_task"}
            for run in runs
        ]
        print(json.dumps(rows))
    elif runs:
        print_table(history_table(runs))
    else:
        print("no finished runs")
