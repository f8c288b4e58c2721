"""Model folders: what lies beside the weights, their number type, folders that are in the way, and
the record that `apr` leaves in every model folder it writes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint.dtypes import DTYPES, FLOATS, SHORT_NAMES
from apr.checkpoint.tensors import Checkpoint
from apr.common.errors import AprError, UsageError
from apr.common.record import FORMAT, FileRecord, checksums, model_manifest
from apr.hub import Pulled

MANIFEST_NAME = "apr_manifest.json"
# Beside the weights of a folder: never copied (weights of any kind, records of other folders).
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_NOT_COPIED_NAMES = ("model.safetensors.index.json", MANIFEST_NAME)


def files_from_folder(checkpoint: Checkpoint, dtype: str | None) -> dict[str, bytes]:
    """Everything small beside the weights; config.json with the new type."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    paths = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")])
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file()
        and path.suffix not in _NOT_COPIED
        and path.name not in _NOT_COPIED_NAMES
        and not path.name.endswith(".index.json")
        and not path.name.startswith(".")
    }
    if dtype is not None:
        config = json.loads(files["config.json"])
        files["config.json"] = json_bytes(with_dtype(config, DTYPES[dtype]))
    return files


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The configuration with the type of its weights changed, in nested parts as well."""
    name = str(dtype).removeprefix("torch.")
    changed = {k: with_dtype(v, dtype) if isinstance(v, dict) else v for k, v in config.items()}
    stated = [key for key in ("dtype", "torch_dtype") if key in config]
    if not stated and "model_type" in config:
        stated = ["torch_dtype"]
    return {**changed, **dict.fromkeys(stated, name)}


def exact_source(pulled: Pulled) -> str:
    return pulled.manifest.ref if pulled.manifest else str(pulled.path.resolve())


def refuse_existing(target: Path) -> None:
    """Before anything is downloaded; the writer looks again."""
    if target.is_file():
        raise UsageError(f"{target} is a file", "name a folder for the model")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(
            f"{target} exists and is not empty", "choose another folder, or `force` to replace it"
        )


def refuse_overlap(target: Path, source: Path) -> None:
    """Replacing the folder that is being read would lose the model."""
    if source.resolve().is_relative_to(target.resolve()):
        raise UsageError(
            f"{target} holds the model that is to be read", "choose another folder to write"
        )


def json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def choose_dtype(checkpoint: Checkpoint, asked: str | None) -> tuple[str, list[str]]:
    """(float type to write, notes): the one asked for, or the type that holds most weights."""
    if asked is not None:
        return asked, []
    counts: Counter[str] = Counter()
    for name in checkpoint.tensors.names():
        info = checkpoint.tensors.info(name)
        counts[info.dtype] += torch.Size(info.shape).numel()
    (main, _), *_ = counts.most_common(1)
    if main in FLOATS:
        return SHORT_NAMES[FLOATS[main]], []
    note = f"{main} weights were rounded to bf16; --dtype fp32 keeps their exact values"
    return "bf16", [note]


def check_fp16_range(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """Raise AprError where a conversion to fp16 made values infinite, or some were NaN before.

    A sum in fp32 is finite unless an element is not: one quick look for most tensors.
    """
    suspect = tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite()
    if suspect and tensor.isnan().any():
        raise AprError(f"{checkpoint.path}: tensor {name} holds NaN", "the model is damaged")
    if suspect and tensor.isinf().any():
        raise AprError(
            f"{checkpoint.path}: tensor {name} has values that fp16 cannot hold (above 65504)",
            "use `dtype` bf16 or fp32",
        )


def folder_manifest(
    command: str,
    *,
    source: str,
    inputs: Sequence[FileRecord],
    settings: Mapping[str, Any],
    tensors: Mapping[str, str],
    files: Mapping[str, bytes],
    notes: Sequence[str] = (),
) -> bytes:
    """The manifest of a written model folder, as JSON.

    tensors: name -> `tensor_sha256`. files: name -> contents of what lies beside the weights. The
    others as in `model_manifest`.
    """
    value = model_manifest(
        command, source=source, inputs=inputs, settings=settings, notes=notes
    ) | {"files": checksums(files), "tensors": dict(tensors)}
    return (json.dumps(value, indent=1) + "\n").encode()


def read_folder_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder `apr` wrote, None where there is none. AprError when damaged."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AprError(f"{path} cannot be read as JSON: {error}", "make the folder again") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise AprError(f"{path} is not a manifest of this version of apr", "make the folder again")
    return value


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Checksum of a tensor's values: its bytes in memory order, little-endian."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
