"""`apr merge-report`: how well models will merge, before or after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("merge-report", help="Compare what models changed in their base, layer by layer.")(
        merge_report
    )


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
