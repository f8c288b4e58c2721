"""What training verbs show."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr.train.prepare import Prepared


def show_plan(
    summary: Mapping[str, Any], prepared: Prepared, to_stderr: bool = False, name: str = ""
) -> None:
    """What will be trained, on what, with how much memory. name: of several adapters."""
    out = sys.stderr if to_stderr else sys.stdout
    if name:
        print(f"{name}:", file=out)
    trainable, parameters = summary["trainable_parameters"], summary["parameters"]
    print(
        f"{summary['method']} of {summary['model']} in {summary['dtype']}: {trainable:,} of"
        f" {parameters:,} parameters are trained ({100 * trainable / parameters:.2f} %)",
        file=out,
    )
    for line in prepared.report.lines():
        print(line, file=out)
    if summary["eval_documents"]:
        print(f"{summary['eval_documents']} documents held out", file=out)
    print(f"{summary['steps']} steps, {summary['batches_per_epoch']} batches an epoch", file=out)
    for note in summary["notes"]:
        print(f"note: {note}", file=out)
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in summary["memory"].items())
    print(f"peak memory about {summary['peak_memory_bytes'] / 1e6:,.0f} MB: {parts}", file=out)


def show_samples(prepared: Prepared, count: int, as_json: bool) -> None:
    """The first documents, coloured by loss mask."""
    from apr.train.samples import coloured, sample_json

    documents = prepared.documents[:count]
    if as_json:
        print(json.dumps({"samples": sample_json(documents, prepared.tokenizer)}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, document in enumerate(documents, 1):
        console.rule(f"{number}: {len(document)} tokens, {document.targets} learned")
        console.print(coloured(document, prepared.tokenizer), soft_wrap=True)


def show_result(result: Mapping[str, Any]) -> None:
    print(result["folder"])
    print(
        f"{result['steps']} steps in {result['seconds']:,.0f} s,"
        f" {result['tokens_per_second']:,.0f} tok/s; loss {result['first_loss']:.4f} to"
        f" {result['last_loss']:.4f}"
    )
    if result["first_eval"] is not None:
        from math import exp

        print(
            f"held-out perplexity {exp(result['first_eval']):.3f} before,"
            f" {exp(result['last_eval']):.3f} after; best {exp(result['best_eval']):.3f}"
            f" (epoch {result['best_epoch']})"
        )
    for score in result.get("scores", []):
        from apr.train.report import score_table

        print("\n".join(score_table(score)))
    if result["stopped"]:
        print(f"stopped early: {result['stopped']}")


def show_merged(result: Mapping[str, Any]) -> None:
    print(result["folder"])
    print(
        f"largest logit difference between adapter and merged model:"
        f" {result['max_logit_difference']:.2e} in fp32 (logits up to {result['max_logit']:.1f})"
    )
