"""`apr inspect`: what a model is and how it is stored. `apr check`: whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from apr.cli.options import JSON_HELP, MODEL_HELP, OFFLINE_HELP

if TYPE_CHECKING:
    from apr.convert.inspect_model import ModelSummary
    from apr.model.config import ModelConfig


def register(app: typer.Typer) -> None:
    app.command(
        "inspect", help="Show what a model is: architecture, sizes, tokenizer, how it is stored."
    )(inspect_model)
    app.command(
        "check", help="Check that a model is whole: files, checksums, tensors, shapes, tokenizer."
    )(check)


def inspect_model(
    ref: str = typer.Argument(help=MODEL_HELP),
    tensors: bool = typer.Option(False, "--tensors", help="List every tensor as well."),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    from apr.convert.inspect_model import inspect_model

    summary = inspect_model(ref, offline=offline)
    if as_json:
        print(json.dumps(summary.to_json(with_tensors=tensors)))
    else:
        print("\n".join(describe(summary, with_tensors=tensors)))


def describe(summary: ModelSummary, with_tensors: bool = False) -> list[str]:
    """The summary as lines for people."""
    rows = [
        ("model", summary.source),
        ("path", str(summary.path)),
        ("architecture", f"{summary.architecture} ({summary.format})"),
        ("parameters", f"{summary.parameters / 1e6:,.1f} million"),
    ]
    if summary.config is not None:
        rows += _describe_config(summary.config)
    if summary.tokenizer is not None:
        ends = ", ".join(summary.tokenizer["end"]) or "nothing"
        kind, size = summary.tokenizer["kind"], summary.tokenizer["vocab_size"]
        rows.append(("tokenizer", f"{kind}, {size} tokens, ends at {ends}"))
        rows.append(("chat template", "yes" if summary.tokenizer["chat_template"] else "no"))
    size = f"{summary.file_bytes / 1e6:,.1f} MB, {summary.bits_per_weight:.2f} bits per weight"
    rows.append(("stored", size))
    lines = [f"{name:<14}{value}" for name, value in rows]
    for kind in summary.types:
        bits = 8 * kind.nbytes / max(kind.parameters, 1)
        lines.append(
            f"{'':<14}{kind.dtype:<7}{kind.tensors:>5} tensors"
            f"{kind.parameters / 1e6:>12,.2f} M{kind.nbytes / 1e6:>12,.1f} MB{bits:>8.2f} bits"
        )
    lines += [f"{'note':<14}{note}" for note in summary.notes]
    if with_tensors:
        width = max((len(info.name) for info in summary.tensors), default=0)
        lines += [
            f"{info.name:<{width}}  {info.dtype:<7}{'x'.join(map(str, info.shape))}"
            for info in summary.tensors
        ]
    return lines


def _describe_config(cfg: ModelConfig) -> list[tuple[str, str]]:
    from apr.model.rope import short_context

    window = f", sliding window {cfg.sliding_window}" if cfg.sliding_window else ""
    scaling = f", {cfg.rope_scaling.kind} rope scaling" if cfg.rope_scaling else ""
    context = short_context(cfg)
    if context < cfg.max_position:
        scaling += f", up to {cfg.max_position} with --max-context"
    tied = "tied" if cfg.tie_embeddings else "untied"
    return [
        (
            "layers",
            f"{cfg.num_layers} of width {cfg.hidden_size}, feed-forward {cfg.intermediate_size}",
        ),
        (
            "attention",
            f"{cfg.num_heads} heads of {cfg.head_dim}, {cfg.num_kv_heads} key/value heads{window}",
        ),
        ("context", f"{context} tokens{scaling}"),
        ("vocabulary", f"{cfg.vocab_size}, {tied} embeddings"),
    ]


def check(
    ref: str = typer.Argument(help=MODEL_HELP),
    forward: bool = typer.Option(
        False, "--forward", help="Also run the model on a few tokens and look for bad numbers."
    ),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    from apr.convert.check_model import check_model

    report = check_model(ref, forward=forward, offline=offline)
    if as_json:
        print(json.dumps({**asdict(report), "path": str(report.path), "passed": report.passed}))
    else:
        print(report.path)
        for line in report.done:
            print(f"checked  {line}")
        for line in report.problems:
            print(f"PROBLEM  {line}")
    if not report.passed:
        raise typer.Exit(1)
