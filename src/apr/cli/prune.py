"""`apr prune`: weights taken out of a model, calibrated block by block."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from apr.cli.options import FORCE_HELP, JSON_HELP, OFFLINE_HELP, OUTPUT
from apr.common.errors import UsageError
from apr.common.settings import option
from apr.prune.prune_settings import PruneSettings

BAR = 30  # characters of a bar in a table


@dataclass(frozen=True)
class Pruned:
    """What becomes of a pruned model, and what is shown of it."""

    output: Path | None = option(None, "Folder to write; must not exist.", short="-o", panel=OUTPUT)
    analyze: bool = option(
        False, "Measure what pruning does to each layer; write nothing.", panel=OUTPUT
    )
    plan: bool = option(False, "Say what would be done, and stop.", panel=OUTPUT)
    verify: bool = option(
        False,
        "Measure perplexity (see --verify-text) and speed before and after.",
        panel=OUTPUT,
    )
    verify_text: tuple[str, ...] = option(
        ("builtin",), "A text as for --perplexity of apr eval.", repeated=True, panel=OUTPUT
    )
    data: Path | None = option(None, "WikiText-2's file, if it is not pulled.", panel=OUTPUT)
    force: bool = option(False, FORCE_HELP, panel=OUTPUT)
    offline: bool = option(False, OFFLINE_HELP, panel=OUTPUT)
    as_json: bool = option(False, JSON_HELP, flag="json", panel=OUTPUT)


def register(app: typer.Typer) -> None:
    app.command(
        "prune",
        help="Take weights, heads, channels or layers out of a model, and say what it cost.",
    )(prune)


def prune(settings: PruneSettings, done: Pruned) -> None:
    from apr.common.memory import use_huge_pages

    use_huge_pages()
    from apr.prune.prune_effects import Verification, compare_speed
    from apr.prune.prune_effects import analyze as analyze_layers
    from apr.prune.prune_run import check_target, prepare, run_prune

    output, offline, as_json = done.output, done.offline, done.as_json
    if output is None and not (done.plan or done.analyze):
        raise UsageError("no folder to write", "-o FOLDER, or --plan, or --analyze")
    checks = Verification(done.verify_text, done.data) if done.verify else None
    prepared = prepare(settings, data=done.data, offline=offline, needs_calibration=done.analyze)
    if done.plan:
        print(json.dumps(prepared.summary())) if as_json else show_prune_plan(prepared.summary())
        return
    if done.analyze:
        found = analyze_layers(prepared)
        print(json.dumps(found)) if as_json else show_analysis(found)
        return
    assert output is not None
    check_target(prepared, output, done.force)
    result: dict[str, Any] = run_prune(prepared, output, force=done.force).to_json()
    if checks is not None:
        result["perplexity"] = checks.compare(settings.model, output, offline=offline)
        result["speed"] = compare_speed(settings.model, output, offline=offline)
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
