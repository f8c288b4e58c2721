"""`apr export`: a model for other programs, or a fine-tune as an adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("export", help="Write a model as a GGUF file, or a fine-tune as a LoRA adapter.")(
        export
    )


def export(
    ref: Annotated[
        str, typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .gguf file, or the folder, to write.")
    ],
    format: str = typer.Option("gguf", "--format", help="gguf."),
    dtype: str | None = typer.Option(
        None, "--dtype", help="bf16, fp16 or fp32. [default: as stored; bf16 for quantized]"
    ),
    pre: str | None = typer.Option(
        None, "--pre", help="Force llama.cpp's name of the pre-tokenizer. [default: derived]"
    ),
    extract_lora: bool = typer.Option(
        False, "--extract-lora", help="Write the difference to --base-model as a PEFT adapter."
    ),
    base_model: str | None = typer.Option(
        None, "--base-model", help="The model a fine-tune started from."
    ),
    rank: int = typer.Option(16, "--rank", help="Of the adapter's layers."),
    include_embeddings: bool = typer.Option(
        False, "--include-embeddings", help="Save embedding and output layer with the adapter."
    ),
    force: bool = typer.Option(False, "--force", help="Replace what is there."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from apr.cli.options import one_of, show_extraction

    if extract_lora:
        from apr.common.errors import UsageError
        from apr.merge.extract import extract_lora as extract

        if base_model is None:
            raise UsageError("--extract-lora needs --base-model", "the model it was tuned from")
        extracted = extract(
            ref,
            base_model,
            output,
            rank,
            include_embeddings=include_embeddings,
            force=force,
            offline=offline,
        )
        result = extracted.to_json()
        print(json.dumps(result)) if as_json else show_extraction(result)
        return
    from apr.convert.export_gguf import export_gguf

    one_of("format", format, {"gguf": "gguf"})
    report = export_gguf(ref, output, dtype, pre=pre, force=force, offline=offline)
    if as_json:
        print(json.dumps({**asdict(report), "path": str(report.path)}))
        return
    print(report.path)
    print(
        f"{report.family}, {report.parameters / 1e6:,.1f} million parameters in "
        f"{report.tensors} tensors, {report.dtype}, {report.nbytes / 1e6:,.1f} MB, "
        f"pre-tokenizer {report.pre_tokenizer}"
    )
    for note in report.notes:
        print(f"note: {note}")
