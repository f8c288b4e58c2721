"""Model folders: what lies beside the weights, and folders that are in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import Checkpoint
from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.model_manifest import MANIFEST_NAME
from apr.common.errors import UsageError
from apr.hub import Pulled

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
            f"{target} exists and is not empty", "choose another folder, or --force to replace it"
        )


def refuse_overlap(target: Path, source: Path) -> None:
    """Replacing the folder that is being read would lose the model."""
    if source.resolve().is_relative_to(target.resolve()):
        raise UsageError(
            f"{target} holds the model that is to be read", "choose another folder to write"
        )


def json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
