"""Handing a model to llama.cpp and Ollama: any model to one GGUF file of dense weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import torch

from apr.checkpoint import (
    GGML_TYPES,
    Checkpoint,
    GgufWriter,
    TensorInfo,
    check_gguf_target,
    hf_to_gguf,
    open_checkpoint,
)
from apr.checkpoint.dtypes import DTYPES, FLOATS, STORED_NAMES
from apr.checkpoint.model_folder import check_fp16_range, choose_dtype, exact_source
from apr.common.errors import UsageError
from apr.common.progress import ByteProgress
from apr.common.record import model_manifest
from apr.hub import pull
from apr.model.config import ModelConfig
from apr.model.families import config_from_checkpoint
from apr.model.gguf_export import (
    config_to_gguf,
    gguf_architecture,
    llama_cpp_limits,
    rope_tensors,
    to_gguf_layout,
)
from apr.model.load import expected_shapes, load_weights
from apr.text import load_tokenizer
from apr.text.gguf_export import tokenizer_to_gguf

MANIFEST_KEY = "apr.manifest"
_FILE_TYPES = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "fp32": gguf.LlamaFileType.ALL_F32,
}
# Of a GGUF source: what describes its storage and not the model.
_NOT_KEPT = {
    "general.architecture",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "general.quantized_by",
}


@dataclass(frozen=True)
class GgufReport:
    """dtype: of the matrices ("bf16", "fp16", "fp32"); vectors are fp32. nbytes: of the file.

    notes: choices made where none was asked for, and what readers will do otherwise.
    """

    path: Path
    source: str
    family: str
    dtype: str
    pre_tokenizer: str
    tensors: int
    parameters: int
    nbytes: int
    notes: tuple[str, ...]


def export_gguf(
    source: str | Path,
    path: str | Path,
    dtype: str | None = None,
    *,
    pre: str | None = None,
    force: bool = False,
    offline: bool = False,
    progress: bool = True,
) -> GgufReport:
    """Write the model at `source` (any reference) as a GGUF file, or write nothing.

    dtype: "bf16", "fp16" or "fp32" for the matrices; None takes the type of most weights, bf16
    for quantized ones. pre: the pre-tokenizer's name instead of the derived one. force: replace
    the file. About one tensor is in memory at a time. Raises UsageError (unknown model, type or
    architecture, file in the way, no GGUF form), AprError (damaged source, a tokenizer GGUF
    cannot say, values beyond fp16, full disk).
    """
    target = Path(path).expanduser()
    _check_dtype(dtype)
    check_gguf_target(target, force)
    pulled = pull(str(source), offline=offline, progress=progress)
    checkpoint = open_checkpoint(pulled.path)
    if target.exists() and target.resolve() in (p.resolve() for p in pulled.weight_paths()):
        raise UsageError(f"{target} is the model that is to be read", "choose another file")
    cfg = config_from_checkpoint(checkpoint)
    name, notes = choose_dtype(checkpoint, dtype)
    factors = rope_tensors(cfg)
    metadata = config_to_gguf(cfg)
    tokenizer, more = _tokenizer_metadata(checkpoint, cfg, pre)
    notes += [*llama_cpp_limits(cfg), *more]
    metadata = _general_metadata(checkpoint, str(source), name) | metadata | tokenizer
    manifest = model_manifest(
        "export",
        source=exact_source(pulled),
        inputs=pulled.files(),
        settings={"format": "gguf", "dtype": dtype, "pre": pre},
        notes=notes,
        created=False,
    )
    metadata[MANIFEST_KEY] = json.dumps(manifest)
    plan = _tensor_plan(cfg, factors, name)
    architecture = gguf_architecture(cfg)
    total = sum(info.nbytes for info in plan)
    with (
        GgufWriter(target, architecture, metadata, plan, overwrite=force) as writer,
        ByteProgress(f"writing {name}", total, progress) as bar,
    ):
        for info, tensor in zip(plan, _tensors(checkpoint, cfg, factors, name), strict=True):
            writer.add(info.name, tensor)
            bar.advance(info.nbytes)
    return GgufReport(
        target,
        exact_source(pulled),
        cfg.family,
        name,
        tokenizer["tokenizer.ggml.pre"],
        len(plan),
        sum(prod(info.shape) for info in plan),
        target.stat().st_size,
        tuple(notes),
    )


def _check_dtype(dtype: str | None) -> None:
    if dtype is None or dtype in DTYPES:
        return
    asked = dtype.upper()
    kind = next((k for k in GGML_TYPES if asked == k or asked.startswith(k + "_")), None)
    if kind in GGML_TYPES and kind not in FLOATS:
        raise UsageError(
            f"dtype {dtype!r} is a quantized type, which apr export does not write",
            f"dense types only: {', '.join(DTYPES)}",
        )
    raise UsageError(f"dtype {dtype!r} is unknown", f"choose one of {', '.join(DTYPES)}")


def _tokenizer_metadata(
    checkpoint: Checkpoint, cfg: ModelConfig, pre: str | None
) -> tuple[dict[str, Any], list[str]]:
    """From GGUF the keys as they are, from a folder what its tokenizer files say."""
    if checkpoint.metadata is not None:
        kept = {k: v for k, v in checkpoint.metadata.items() if k.startswith("tokenizer.")}
        notes = load_tokenizer(checkpoint.path).notes if pre is None else ()
        kept["tokenizer.ggml.pre"] = pre or kept.get("tokenizer.ggml.pre", "default")
        return kept, list(notes)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    found = tokenizer_to_gguf(load_tokenizer(folder), cfg.vocab_size, gguf_architecture(cfg), pre)
    metadata = dict(found.metadata)
    # Some folders name these only in config.json.
    for key, value in (("bos", cfg.bos_token_id), ("padding", cfg.pad_token_id)):
        if value is not None and value < cfg.vocab_size:
            metadata.setdefault(f"tokenizer.ggml.{key}_token_id", value)
    return metadata, list(found.notes)


def _general_metadata(checkpoint: Checkpoint, source: str, dtype: str) -> dict[str, Any]:
    given = checkpoint.metadata or {}
    kept = {k: v for k, v in given.items() if k.startswith("general.") and k not in _NOT_KEPT}
    name = Path(source.rstrip("/").rpartition("/")[2])
    return {
        "general.type": "model",
        "general.name": name.stem if name.suffix in (".gguf", ".safetensors") else name.name,
        **kept,
        "general.file_type": int(_FILE_TYPES[dtype]),
    }


def _tensor_plan(
    cfg: ModelConfig, factors: dict[str, torch.Tensor], dtype: str
) -> list[TensorInfo]:
    plan = [_info(name, tuple(tensor.shape), "F32") for name, tensor in factors.items()]
    for name, shape in expected_shapes(cfg).items():
        stored = hf_to_gguf(name, gguf_architecture(cfg))
        plan.append(_info(stored, shape, "F32" if len(shape) == 1 else STORED_NAMES[DTYPES[dtype]]))
    return plan


def _info(name: str, shape: tuple[int, ...], kind: str) -> TensorInfo:
    return TensorInfo(name, shape, kind, prod(shape) * GGML_TYPES[kind].block_bytes)


def _tensors(
    checkpoint: Checkpoint, cfg: ModelConfig, factors: dict[str, torch.Tensor], dtype: str
) -> Iterator[torch.Tensor]:
    """In the order of `_tensor_plan`, in GGUF's layout and types."""
    yield from factors.values()
    for name, stored in load_weights(checkpoint, cfg):
        tensor = to_gguf_layout(name, stored, cfg)
        if tensor.ndim > 1:
            tensor = tensor.to(DTYPES[dtype])
            if dtype == "fp16":
                check_fp16_range(checkpoint, name, tensor)
        yield tensor
