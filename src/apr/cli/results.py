"""`apr results`: what finished runs found. `apr compare`: two of them, task by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("results", help="List evaluations, or show what one found.")(results)
    app.command("compare", help="Compare two evaluations task by task.")(compare)


def results(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or one run. \\[default: runs]")
    ] = None,
    benchmark: str = typer.Option("", help="Only runs of benchmarks with this in their name."),
    model: str = typer.Option("", help="Only runs of models with this in their name."),
    sort: str = typer.Option(
        "finished", help="finished, score, speed, benchmark or model; the largest last."
    ),
    failed: bool = typer.Option(
        False, "--failed", help="Of one run: every failure with program and reason."
    ),
    suspect: bool = typer.Option(
        False, "--suspect", help="Of one run: the samples to be looked at, passed or not."
    ),
    task: str = typer.Option("", help="Of one run: this task's samples, passed or not."),
    contaminated: Annotated[
        Path | None,
        typer.Option(
            "--contamination",
            metavar="REPORT",
            help="Of one run: the score of the tasks that a report of apr data decontaminate"
            " found in training data, and of the others.",
        ),
    ] = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    from rich.console import Console

    from apr.cli.eval_output import contamination_table, page, print_table
    from apr.cli.options import one_of
    from apr.common.errors import UsageError
    from apr.eval.history.contamination import contamination
    from apr.eval.history.read import ORDERS, find_runs, in_order, is_run, read_run, select, summary
    from apr.eval.history.table import history_table, run_table, samples_json, shown_samples

    chosen = folders or [Path("runs")]
    if contaminated is not None:
        if len(chosen) != 1:
            raise UsageError("--contamination is of one run", "apr results RUN --contamination …")
        split = contamination(read_run(chosen[0]), contaminated)
        if as_json:
            print(json.dumps(split.to_json()))
        else:
            print_table(contamination_table(split))
        return
    if failed or suspect or task:
        if len(chosen) != 1:
            raise UsageError("--failed, --suspect and --task show one run", "apr results RUN …")
        run = read_run(chosen[0])
        found = select(run, task, failed, suspect)
        if as_json:
            print(json.dumps(samples_json(run, found)))
        else:
            page(shown_samples(run, found) or "no such sample")
        return
    if len(chosen) == 1 and is_run(chosen[0]):
        run = read_run(chosen[0])
        if as_json:
            print(json.dumps({**summary(run), "per_task": run.results["per_task"]}))
        else:
            print_table(run_table(run))
        return
    one_of("sort", sort, dict.fromkeys(ORDERS))
    runs = in_order(find_runs(chosen, benchmark, model), sort)
    if as_json:
        print(json.dumps([summary(run) for run in runs]))
    elif runs:
        print_table(history_table(runs, Console().width))
    else:
        print("no runs")


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
