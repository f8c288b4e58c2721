"""`apr prune`: weights taken out of a model, calibrated block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

METHOD_HELP = (
    "magnitude, wanda, sparsegpt: weights become zero. structured: heads and channels go. depth:"
    " layers go. width: the hidden state gets narrower. These three make the model smaller and"
    " faster."
)


def register(app: typer.Typer) -> None:
    app.command(
        "prune",
        help="Take weights, heads, channels or layers out of a model, and say what it cost.",
    )(prune)


def prune(
    model: str = typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf."),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; must not exist.")
    ] = None,
    method: str = typer.Option("wanda", "--method", help=METHOD_HELP),
    sparsity: float | None = typer.Option(
        None,
        "--sparsity",
        "--target-ratio",
        help="Part of the weights of the layers' matrices that becomes zero or goes, e.g. 0.5.",
    ),
    pattern: str | None = typer.Option(
        None, "--pattern", help="N:M, e.g. 2:4: at most N of every M neighbours in a row are kept."
    ),
    allocation: str = typer.Option(
        "uniform",
        "--allocation",
        help="uniform; owl: less from layers with outliers; global: one threshold (magnitude).",
    ),
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            help="builtin (Python's standard library), wikitext-2, or a file (.txt, .jsonl, packed"
            " with gzip or not). Several: as many sequences from each. \\[default: builtin]",
        ),
    ] = None,
    sequences: int = typer.Option(128, "--sequences", help="Of calibration."),
    sequence_length: int = typer.Option(512, "--sequence-length", help="In tokens."),
    data: Path | None = typer.Option(None, "--data", help="WikiText-2's file, if not pulled."),
    owl_spread: float = typer.Option(0.08, "--owl-spread", help="Half the span of sparsities."),
    owl_outlier: float = typer.Option(5.0, "--owl-outlier", help="Outliers: times the mean."),
    damping: float | None = typer.Option(
        None,
        "--damping",
        help="sparsegpt, structured: of the Hessian's mean diagonal.",
        show_default="0.01",
    ),
    kv_heads: int | None = typer.Option(
        None,
        "--kv-heads",
        help="structured: KV heads to take from each layer, with their query heads.",
        show_default="as --sparsity says, rounded down",
    ),
    importance: str | None = typer.Option(
        None,
        "--importance",
        help="structured, depth, width: what goes is chosen by activations, or random, to compare.",
        show_default="activations",
    ),
    analyze: bool = typer.Option(
        False, "--analyze", help="Measure what pruning does to each layer; write nothing."
    ),
    plan: bool = typer.Option(False, "--plan", help="Say what would be done, and stop."),
    verify: bool = typer.Option(
        False, "--verify", help="Measure perplexity (see --verify-text) and speed before and after."
    ),
    verify_text: Annotated[
        list[str] | None,
        typer.Option("--verify-text", help="As --perplexity of apr eval. \\[default: builtin]"),
    ] = None,
    seed: int = typer.Option(0, "--seed", help="Of the choice of calibration sequences."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="Layers run in bfloat16 or float32; auto: as the processor is fast."
    ),
    device: str = typer.Option("auto", "--device", help="cpu, cuda, mps."),
    force: bool = typer.Option(False, "--force", help="Replace a model that is in the folder."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.common.memory import use_huge_pages

    use_huge_pages()
    from apr.cli.prune_output import show_analysis, show_prune, show_prune_plan
    from apr.common.errors import UsageError
    from apr.prune.prune_effects import analyze as analyze_layers
    from apr.prune.prune_run import check_target, prepare, run_prune
    from apr.prune.prune_settings import make_settings
    from apr.prune.verify import Verification, compare_speed

    settings = make_settings(
        model,
        method,
        sparsity,
        pattern,
        allocation=allocation,
        calibration=tuple(calibration or ("builtin",)),
        sequences=sequences,
        sequence_length=sequence_length,
        seed=seed,
        owl_spread=owl_spread,
        owl_outlier=owl_outlier,
        damping=damping,
        kv_heads=kv_heads,
        importance=importance,
        dtype=dtype,
        device=device,
    )
    if output is None and not (plan or analyze):
        raise UsageError("no folder to write", "-o FOLDER, or --plan, or --analyze")
    checks = Verification(tuple(verify_text or ("builtin",)), data) if verify else None
    prepared = prepare(settings, data=data, offline=offline, needs_calibration=analyze)
    if plan:
        print(json.dumps(prepared.summary())) if as_json else show_prune_plan(prepared.summary())
        return
    if analyze:
        found = analyze_layers(prepared)
        print(json.dumps(found)) if as_json else show_analysis(found)
        return
    assert output is not None
    check_target(prepared, output, force)
    result: dict[str, Any] = run_prune(prepared, output, force=force).to_json()
    if checks is not None:
        result["perplexity"] = checks.compare(model, output, offline=offline)
        result["speed"] = compare_speed(model, output, offline=offline)
    print(json.dumps(result)) if as_json else show_prune(result)
