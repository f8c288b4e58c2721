"""What was made, from what: the record `apr` leaves in every model folder it writes."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from apr import __version__
from apr.common.errors import AprError
from apr.hub import FileRecord

MANIFEST_NAME = "apr_manifest.json"
FORMAT = 1
_PACKAGES = ("torch", "safetensors", "tokenizers", "numpy")


def folder_manifest(
    command: str,
    *,
    source: str,
    inputs: tuple[FileRecord, ...],
    settings: Mapping[str, Any],
    tensors: Mapping[str, str],
    files: Mapping[str, bytes],
    notes: tuple[str, ...] = (),
) -> bytes:
    """The manifest of a written model folder, as JSON.

    inputs: the files read. tensors: name -> `tensor_sha256`. files: name -> contents of what lies
    beside the weights. notes: choices the user did not make, told once more.
    """
    value = {
        "format": FORMAT,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source,
        "inputs": [vars(record) for record in inputs],
        "settings": dict(settings),
        "notes": list(notes),
        "versions": _versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "tensors": dict(tensors),
    }
    return (json.dumps(value, indent=1) + "\n").encode()


def file_manifest(
    command: str,
    *,
    source: str,
    inputs: tuple[FileRecord, ...],
    settings: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> str:
    """The manifest of a single model file, as JSON to keep in its metadata.

    It names no time: the same input gives the same file, byte by byte.
    """
    value = {
        "format": FORMAT,
        "command": command,
        "source": source,
        "inputs": [vars(record) for record in inputs],
        "settings": dict(settings),
        "notes": list(notes),
        "versions": _versions(),
    }
    return json.dumps(value)


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


def _versions() -> dict[str, str]:
    found = {"apr": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # vendored or running from an archive: not worth failing for
    return found
