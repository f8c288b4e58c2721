"""`apr pull`, `apr import`, `apr export`: models fetched, read and written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from apr.cli.options import JSON_HELP, MODEL_HELP, OFFLINE_HELP


def register(app: typer.Typer) -> None:
    app.command("pull", help="Fetch a model into the cache; print its path, size and checksum.")(
        pull
    )
    app.command("import", help="Write a model (GGUF or folder) as a Hugging Face folder.")(
        import_model
    )
    app.command("export", help="Write a model as a GGUF file, or a fine-tune as a LoRA adapter.")(
        export
    )


def pull(
    ref: str = typer.Argument(help=MODEL_HELP),
    refresh: bool = typer.Option(
        False, "--refresh", help="Look for a newer version; fetch damaged files again."
    ),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    from apr.hub import pull as pull_model

    pulled = pull_model(ref, offline=offline, refresh=refresh)
    files = pulled.files()
    source = pulled.manifest.ref if pulled.manifest else str(pulled.path)
    if as_json:
        result = {
            "ref": ref,
            "source": source,
            "path": str(pulled.path),
            "size": sum(file.size for file in files),
            "sha256": files[0].sha256 if len(files) == 1 else None,
            "files": [asdict(file) for file in files],
            "from_cache": pulled.from_cache,
        }
        print(json.dumps(result))
        return
    print(pulled.path)
    print(f"{source}{', already in the cache' if pulled.from_cache else ''}")
    for file in files:
        print(f"{file.size / 1e6:,.1f} MB  sha256 {file.sha256}  {file.path}")


def import_model(
    ref: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; new or empty.")],
    dtype: str | None = typer.Option(
        None,
        "--dtype",
        help="Number type of the weights: bf16, fp16 or fp32."
        " \\[default: as stored; bf16 if they are quantized]",
    ),
    force: bool = typer.Option(False, "--force", help="Replace the model that the folder holds."),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
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


def export(
    ref: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .gguf file, or the folder, to write.")
    ],
    format: str = typer.Option("gguf", "--format", help="Format of the file: gguf."),
    dtype: str | None = typer.Option(
        None,
        "--dtype",
        help="Number type of the weights: bf16, fp16 or fp32."
        " \\[default: as stored; bf16 if they are quantized]",
    ),
    pre: str | None = typer.Option(
        None,
        "--pre",
        help="Name that llama.cpp has for the tokenizer's way of cutting text into words."
        " \\[default: found from its rules]",
    ),
    extract_lora: bool = typer.Option(
        False,
        "--extract-lora",
        help="Write what a fine-tune changed in --base-model as a LoRA adapter (PEFT).",
    ),
    base_model: str | None = typer.Option(
        None, "--base-model", help="With --extract-lora: the model that fine-tuning began with."
    ),
    rank: int = typer.Option(16, "--rank", help="With --extract-lora: rank of the adapter."),
    include_embeddings: bool = typer.Option(
        False,
        "--include-embeddings",
        help="With --extract-lora: keep the fine-tune's embedding and output layer whole.",
    ),
    force: bool = typer.Option(False, "--force", help="Replace a file or adapter that is there."),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
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
