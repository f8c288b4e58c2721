"""Taking a model in: GGUF or a Hugging Face folder to a Hugging Face folder of one float type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from apr.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.model_folder import (
    MANIFEST_NAME,
    check_fp16_range,
    choose_dtype,
    exact_source,
    files_from_folder,
    folder_manifest,
    json_bytes,
    refuse_existing,
    refuse_overlap,
    tensor_sha256,
)
from apr.common.errors import UsageError
from apr.common.progress import ByteProgress
from apr.hub import pull
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint, config_to_hf
from apr.model.load import load_weights
from apr.text import load_tokenizer


@dataclass(frozen=True)
class ImportReport:
    """dtype: "bf16", "fp16", "fp32" or "as stored". nbytes: of all tensors written.

    notes: choices made where none was asked for, and assumptions about the source.
    """

    folder: Path
    source: str
    family: str
    dtype: str
    tensors: int
    parameters: int
    nbytes: int
    notes: tuple[str, ...]


def import_checkpoint(
    source: str | Path,
    folder: str | Path,
    dtype: str | None = None,
    *,
    force: bool = False,
    offline: bool = False,
    progress: bool = True,
    max_shard_bytes: float = 5e9,
) -> ImportReport:
    """Write the model at `source` (any reference) as a Hugging Face folder, or write nothing.

    dtype: "bf16", "fp16" or "fp32"; None keeps what a Hugging Face folder stores, and takes for
    GGUF the type of most weights, bf16 for quantized ones (their exact values need fp32).
    force: replace a model that is in `folder`. About one tensor is in memory at a time.
    Raises UsageError (unknown model, type or architecture, folder in the way), AprError (damaged
    source, values beyond fp16, full disk).
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown", f"choose one of {', '.join(DTYPES)}")
    target = Path(folder).expanduser()
    if not force:
        refuse_existing(target)
    pulled = pull(str(source), offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    refuse_overlap(target, checkpoint.path)
    cfg = config_from_checkpoint(checkpoint)
    if checkpoint.format == "gguf":
        name, notes = choose_dtype(checkpoint, dtype)
        files, more = files_from_gguf(checkpoint, cfg, name)
        notes += more
        weights: Iterator[tuple[str, torch.Tensor]] = load_weights(checkpoint, cfg, DTYPES[name])
    else:
        name, notes = dtype or "as stored", []
        files = files_from_folder(checkpoint, dtype)
        weights = _stored_weights(checkpoint, DTYPES[dtype] if dtype else None)
    with CheckpointWriter(target, max_shard_bytes, overwrite=force) as writer:
        written = _write(writer, checkpoint, weights, name, progress)
        manifest = folder_manifest(
            "import",
            source=exact_source(pulled),
            inputs=pulled.files(),
            settings={"dtype": dtype, "max_shard_bytes": max_shard_bytes},
            tensors=written.sums,
            files=files,
            notes=tuple(notes),
        )
        for file, content in {**files, MANIFEST_NAME: manifest}.items():
            writer.add_file(file, content)
    return ImportReport(
        target,
        exact_source(pulled),
        cfg.family,
        name,
        len(written.sums),
        written.parameters,
        written.nbytes,
        tuple(notes),
    )


@dataclass
class _Written:
    sums: dict[str, str]
    parameters: int = 0
    nbytes: int = 0


def _write(
    writer: CheckpointWriter,
    checkpoint: Checkpoint,
    weights: Iterator[tuple[str, torch.Tensor]],
    dtype: str,
    progress: bool,
) -> _Written:
    written = _Written({})
    infos = [checkpoint.tensors.info(name) for name in checkpoint.tensors.names()]
    total = sum(torch.Size(info.shape).numel() for info in infos)
    width = DTYPES[dtype].itemsize if dtype in DTYPES else 2
    with ByteProgress(f"writing {dtype}", total * width, progress) as bar:
        for name, tensor in weights:
            if dtype == "fp16":
                check_fp16_range(checkpoint, name, tensor)
            writer.add(name, tensor)
            written.sums[name] = tensor_sha256(tensor)
            written.parameters += tensor.numel()
            written.nbytes += tensor.nbytes
            bar.advance(tensor.numel() * width)
    return written


def files_from_gguf(
    checkpoint: Checkpoint, cfg: ModelConfig, dtype: str
) -> tuple[dict[str, bytes], list[str]]:
    """config.json, tokenizer, chat template and generation_config.json from GGUF metadata."""
    tokenizer = load_tokenizer(checkpoint.path)
    config = {**config_to_hf(cfg), "torch_dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    return {"config.json": json_bytes(config), **tokenizer.to_files()}, list(tokenizer.notes)


def _stored_weights(
    checkpoint: Checkpoint, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.tensors.names():
        yield name, checkpoint.tensors.get(name, dtype)
