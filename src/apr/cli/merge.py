"""`apr merge`: several models into one, by weight arithmetic. `apr merge-report`: how well they
will merge, or did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command("merge", help="Merge models of one architecture into one.")(merge)
    app.command("merge-report", help="Compare what models changed in their base, layer by layer.")(
        merge_report
    )


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            help="The models (references, folders, .gguf; MODEL+ADAPTER for a LoRA adapter), or"
            " one YAML file in MergeKit's format."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; must not exist.")
    ] = None,
    strategy: str | None = typer.Option(
        None,
        "--strategy",
        help="linear, slerp, multislerp, karcher, nuslerp, task-arithmetic, ties, dare-linear,"
        " dare-ties, breadcrumbs, breadcrumbs-ties, della, della-linear, model-stock, sce,"
        " arcee-fusion, nearswap, passthrough.",
    ),
    base_model: str | None = typer.Option(
        None, "--base-model", help="The model the others were fine-tuned from."
    ),
    weights: str | None = typer.Option(None, "--weights", help="One for each model, e.g. 0.7,0.3."),
    density: str | None = typer.Option(
        None, "--density", help="Part of each delta that is kept; one number, or one per model."
    ),
    lambda_: float | None = typer.Option(
        None, "--lambda", help="Factor of the merged delta. \\[default: 1]"
    ),
    t: str | None = typer.Option(
        None,
        "--t",
        help="slerp: 0 is the first model, 1 the second; 0,0.5,1 runs over the layers."
        " \\[default: 0.5]",
    ),
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", help="Any other parameter of the method, e.g. --parameter gamma=0.02."
        ),
    ] = None,
    rescale_norm: str | None = typer.Option(
        None, "--rescale-norm", help="DARE, DELLA: density (the papers) or l1 (MergeKit)."
    ),
    like_mergekit: bool = typer.Option(
        False, "--like-mergekit", help="Follow MergeKit where it departs from the papers."
    ),
    dtype: str | None = typer.Option(
        None, "--dtype", help="Type to write: bf16, fp16, fp32. \\[default: as the first model]"
    ),
    tokenizer_source: str | None = typer.Option(
        None, "--tokenizer-source", help="Where tokenizers differ: base, union or one of the models"
    ),
    plan: bool = typer.Option(False, "--plan", help="Say what would be done, and stop."),
    check: bool = typer.Option(
        False, "--check", help="Then measure perplexity and 20 tasks on the result."
    ),
    seed: int = typer.Option(0, "--seed", help="Of random masks (DARE, DELLA)."),
    threads: int | None = typer.Option(None, "--threads", min=1, help="\\[default: all cores]"),
    force: bool = typer.Option(False, "--force", help="Replace a model that is in the folder."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.options import show_merge, show_merge_plan
    from apr.common.errors import UsageError
    from apr.merge.flags import settings_from_flags
    from apr.merge.merge import prepare, run_merge

    settings = settings_from_flags(
        models,
        strategy=strategy,
        base_model=base_model,
        weights=weights,
        density=density,
        lambda_=lambda_,
        t=t,
        parameters=tuple(parameter or ()),
        rescale_norm=rescale_norm,
        like_mergekit=like_mergekit,
        dtype=dtype,
        tokenizer_source=tokenizer_source,
    )
    if output is None and not plan:
        raise UsageError("no folder to write", "-o FOLDER, or --plan to see what would be done")
    prepared = prepare(settings, offline=offline)
    summary = prepared.summary(threads)
    if plan:
        print(json.dumps(summary)) if as_json else show_merge_plan(summary)
        return
    assert output is not None
    if not as_json:
        show_merge_plan(summary, to_stderr=True)
    report = run_merge(prepared, output, seed=seed, threads=threads, force=force)
    result: dict[str, Any] = report.to_json()
    if check:
        from apr.eval.run.smoke import smoke_test

        whole = [model.ref for model in prepared.plan.inputs if model.adapter is None]
        result["check"] = smoke_test(output, whole)
    print(json.dumps(result)) if as_json else show_merge(result)


def merge_report(
    models: Annotated[list[str], typer.Argument(help="Fine-tuned models, as for apr merge.")],
    base: Annotated[str, typer.Option("--base", "--base-model", help="What they were tuned from.")],
    merged: str | None = typer.Option(
        None, "--merged", help="What they were merged to, to be compared as well."
    ),
    picture: Path | None = typer.Option(None, "--plot", help="Draw the layers into this file."),
    threads: int | None = typer.Option(None, "--threads", min=1, help="\\[default: all cores]"),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.merge.diagnostics import diagnose, plot

    found = diagnose(models, base, merged, threads=threads, offline=offline)
    if picture is not None:
        plot(found, str(picture))
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from rich.console import Console

    from apr.cli.options import merge_report_table

    console = Console()
    console.print(merge_report_table(found))
    console.print(found.verdict())
