"""What was made, from what: the record `apr` leaves in every model folder it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apr.common.errors import AprError
from apr.common.record import FORMAT, FileRecord, checksums, model_manifest

MANIFEST_NAME = "apr_manifest.json"


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
