"""What `apr prune` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

BAR = 30


def show_prune_plan(plan: Mapping[str, Any]) -> None:
    print(f"{plan['method']}, {_how_much(plan)} of {plan['model']}")
    print(
        f"{plan['matrices']} matrices in {plan['layers']} layers,"
        f" {plan['prunable_parameters'] / 1e6:,.1f} of {plan['parameters'] / 1e6:,.1f} million"
        f" parameters; {plan['dtype']} on {plan['device']}, peak memory about"
        f" {plan['peak_memory_bytes'] / 1e6:,.0f} MB"
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
    pattern = f" as {result['pattern']}" if result["pattern"] else ""
    table.add_row("sparsity asked for", f"{100 * result['nominal']:.2f} %{pattern}")
    table.add_row("zeros in the matrices", f"{100 * result['sparsity']:.2f} %")
    table.add_row("zeros in the whole model", f"{100 * result['of_all']:.2f} %")
    low, high = min(result["layers"]), max(result["layers"])
    if high - low > 1e-3:
        table.add_row("layer by layer", f"{100 * low:.1f} to {100 * high:.1f} %")
    table.add_row("parameters", f"{result['parameters'] / 1e6:,.1f} million")
    sizes = f"{result['input_bytes'] / 1e6:,.1f} → {result['nbytes'] / 1e6:,.1f} MB"
    table.add_row("weights on disk", sizes)
    spent = f"{result['seconds']:.0f} s, {result['peak_memory_bytes'] / 1e6:,.0f} MB at most"
    table.add_row("pruning took", spent)
    for row in result.get("perplexity", ()):
        change = "" if row["change"] is None else f" ({100 * row['change']:+.1f} %)"
        values = f"{_number(row['before'])} → {_number(row['after'])}{change}"
        table.add_row(f"perplexity, {row['text']}", values)
    Console().print(table)
    if result["shapes_kept"]:
        print(
            "zeros are stored like other numbers: the model is neither smaller nor faster, unless"
            " a program that knows the pattern runs it"
        )
    _notes(result)


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
        f" {found['method']}, {_how_much(found)}"
    )
    _notes(found)


def _how_much(plan: Mapping[str, Any]) -> str:
    return plan["pattern"] or f"{100 * plan['sparsity']:g} %"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _notes(result: Mapping[str, Any]) -> None:
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
