"""`apr merge`: several models into one, by weight arithmetic. `apr merge-report`: how well they
will merge, or did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from apr.cli.options import FORCE_HELP, JSON_HELP, OFFLINE_HELP, OUTPUT
from apr.common.errors import UsageError
from apr.common.settings import check, option
from apr.merge.short_form import ShortForm

THREADS_HELP = "Processor cores to use. [default: all]"


@dataclass(frozen=True)
class Merged:
    """What becomes of a merge, and what is shown of it."""

    output: Path | None = option(None, "Folder to write; must not exist.", short="-o", panel=OUTPUT)
    plan: bool = option(False, "Say what would be done, and stop.", panel=OUTPUT)
    check: bool = option(
        False, "Measure perplexity and 20 tasks of HumanEval on the result.", panel=OUTPUT
    )
    seed: int = option(0, "The same seed drops the same changes (DARE, DELLA).", panel="Method")
    threads: int | None = option(None, THREADS_HELP, least=1, panel=OUTPUT)
    force: bool = option(False, FORCE_HELP, panel=OUTPUT)
    offline: bool = option(False, OFFLINE_HELP, panel=OUTPUT)
    as_json: bool = option(False, JSON_HELP, flag="json", panel=OUTPUT)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Compared:
    """What a report compares."""

    models: tuple[str, ...] = option(
        ..., "Fine-tuned models, as for apr merge.", argument=True, repeated=True
    )
    base: str = option(..., "The model they were tuned from.", short="--base-model")
    merged: str | None = option(None, "What they were merged to, to be compared as well.")
    plot: Path | None = option(None, "Draw the layers into this file.")
    threads: int | None = option(None, THREADS_HELP, least=1)
    offline: bool = option(False, OFFLINE_HELP)
    as_json: bool = option(False, JSON_HELP, flag="json")

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    app.command("merge", help="Merge models of one architecture into one.")(merge)
    app.command("merge-report", help="Compare what models changed in their base, layer by layer.")(
        merge_report
    )


def merge(asked: ShortForm, done: Merged) -> None:
    from apr.cli.options import show_merge, show_merge_plan
    from apr.merge.merge import prepare, run_merge

    output, as_json = done.output, done.as_json
    settings = asked.settings()
    if output is None and not done.plan:
        raise UsageError("no folder to write", "-o FOLDER, or --plan to see what would be done")
    prepared = prepare(settings, offline=done.offline)
    summary = prepared.summary(done.threads)
    if done.plan:
        print(json.dumps(summary)) if as_json else show_merge_plan(summary)
        return
    assert output is not None
    if not as_json:
        show_merge_plan(summary, to_stderr=True)
    report = run_merge(prepared, output, seed=done.seed, threads=done.threads, force=done.force)
    result: dict[str, Any] = report.to_json()
    if done.check:
        from apr.eval.run.smoke import smoke_test

        whole = [model.ref for model in prepared.plan.inputs if model.adapter is None]
        result["check"] = smoke_test(output, whole)
    print(json.dumps(result)) if as_json else show_merge(result)


def merge_report(asked: Compared) -> None:
    from apr.merge.diagnostics import diagnose, plot

    found = diagnose(
        asked.models, asked.base, asked.merged, threads=asked.threads, offline=asked.offline
    )
    if asked.plot is not None:
        plot(found, str(asked.plot))
    if asked.as_json:
        print(json.dumps(found.to_json()))
        return
    from rich.console import Console

    from apr.cli.options import merge_report_table

    console = Console()
    console.print(merge_report_table(found))
    console.print(found.verdict())
