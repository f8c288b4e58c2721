"""`apr score`: judge completions made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from apr.cli.options import (
    BROKEN_HELP,
    CUTOFF_HELP,
    FROM_HELP,
    PYTHON_HELP,
    RERANK_HELP,
    TO_HELP,
    parse_ks,
    parse_rerank,
    parse_window,
)


def register(app: typer.Typer) -> None:
    app.command("score", help="Judge a file of samples; needs no model.")(score)


def score(
    samples: Path = typer.Argument(
        None,
        help="JSON lines (.jsonl, .jsonl.gz) or an array (.json) of samples, or EvalPlus' results"
        " (…eval_results.json) or folder (HumanEval_0/0.py).",
    ),
    benchmark: str = typer.Option(
        "humaneval", help="Which benchmark, or a file of tasks of yours (.jsonl, .py)."
    ),
    data: Path = typer.Option(None, help="The benchmark's file, instead of the installed one."),
    date_from: str = typer.Option("", "--from", help=FROM_HELP),
    date_to: str = typer.Option("", "--to", help=TO_HELP),
    cutoff: str = typer.Option("", help=CUTOFF_HELP),
    python: str = typer.Option(None, help=PYTHON_HELP),
    exclude_broken: bool = typer.Option(False, "--exclude-broken", help=BROKEN_HELP),
    check_gt: bool = typer.Option(
        False, "--check-gt", help="Only run the reference solutions; exit status 1 if one fails."
    ),
    k: str = typer.Option("", help="Which pass@k, e.g. 1,10. Default: 1, 10, 100 where possible."),
    rerank: str = typer.Option("none", help=RERANK_HELP),
    allow_partial: bool = typer.Option(
        False, "--allow-partial", help="Score the tasks that have samples."
    ),
    workers: int = typer.Option(None, help="Programs judged side by side. Default: the cores."),
    sandbox_level: str = typer.Option("auto", help="full, confined, limits, or the best there is."),
    allow_weak_sandbox: bool = typer.Option(
        False, "--allow-weak-sandbox", help="Accept level limits: resource limits only."
    ),
    per_task: bool = typer.Option(False, "--per-task", help="Show every task."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.options import print_result, sandbox_choice
    from apr.common.errors import UsageError
    from apr.eval.run.scoring import run_references, score_samples

    if check_gt:
        found = run_references(
            benchmark,
            data,
            python=python,
            workers=workers,
            level=sandbox_choice(sandbox_level),
            allow_weak=allow_weak_sandbox,
        )
        if as_json:
            print(json.dumps(found.to_json()))
        else:
            print("\n".join([found.summary(), *found.notes()]))
        raise typer.Exit(1 if found.broken else 0)
    if samples is None:
        raise UsageError("no file of samples is named", "apr score SAMPLES, or --check-gt")
    result = score_samples(
        samples,
        benchmark,
        data=data,
        ks=parse_ks(k),
        rerank=parse_rerank(rerank),
        allow_partial=allow_partial,
        workers=workers,
        level=sandbox_choice(sandbox_level),
        allow_weak=allow_weak_sandbox,
        window=parse_window(date_from, date_to, cutoff),
        python=python,
        exclude_broken=exclude_broken,
    )
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print_result(result, per_task)
